"""What runs when: Prefect flows around the DVC stages. No computation here."""
