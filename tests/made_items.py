"""A checkpoint whose items' vectors follow from their genres, so that a map from metadata has something to learn."""

import torch
from made_checkpoints import write_checkpoint
from safetensors.torch import load_file, save_file

from components.recommender import Recommender
from components.serving.item_map import fit_item_map

KEYS = [f"item-{number}" for number in range(60)]
GENRES = ["Action|Comedy", "Comedy", "Drama", "Action", "Drama|Horror", "Horror"] * 10
TITLES = [f"Film {number} ({1990 + number % 3})" for number in range(60)]


def write_structured(folder, keys=KEYS, **options):
    """Fabricate a checkpoint like that."""
    number = len(keys)
    return structure(write_checkpoint(folder, keys, genres=GENRES[:number], titles=TITLES[:number], **options), number)


def structure(checkpoint, num_items):
    """Make vectors sums of one direction a genre, and a little noise."""
    weights = load_file(checkpoint / "weights.safetensors")
    generator = torch.Generator().manual_seed(3)
    rows = 0.05 * torch.randn(num_items, 8, generator=generator) + 0.1
    for row, genres in enumerate(GENRES[:num_items]):
        for genre in genres.split("|"):
            rows[row, ["Action", "Comedy", "Drama", "Horror"].index(genre)] += 0.4
    weights["embedding.item.weight"] = rows
    save_file(weights, checkpoint / "weights.safetensors")
    return checkpoint


def fit(recommender):
    rows = recommender.model.embedding.item.weight.detach().numpy()
    return fit_item_map(recommender.catalogue, rows, recommender.ask_made())


def load_with_map(folder, **options):
    recommender = Recommender.load(write_structured(folder, **options))
    return recommender, fit(recommender)
