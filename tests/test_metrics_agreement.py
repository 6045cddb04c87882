"""HR, NDCG and MRR are those of trec_eval, whose results a generation of papers is written in."""

import ir_measures
import pytest
import torch
from ir_measures import RR, Qrel, ScoredDoc, Success, nDCG

from components.metrics import measure, metric_names, rank_targets

CUTOFFS = (1, 3, 10, 50)
NUM_TARGETS, NUM_ITEMS = 400, 80


@pytest.fixture(scope="module")
def rankings():
    """Rankings without ties, each a permutation, and one relevant item in each."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.stack([torch.randperm(NUM_ITEMS, generator=generator) for _ in range(NUM_TARGETS)]).float()
    return scores, torch.randint(NUM_ITEMS, (NUM_TARGETS,), generator=generator)


def theirs(measures, rankings):
    scores, targets = rankings
    qrels = [Qrel(str(t), str(item), 1) for t, item in enumerate(targets.tolist())]
    run = [ScoredDoc(str(t), str(i), score) for t, row in enumerate(scores.tolist()) for i, score in enumerate(row)]
    values = {(m.measure, m.query_id): m.value for m in ir_measures.iter_calc(measures, qrels, run)}
    return [[values[measure, str(t)] for measure in measures] for t in range(len(targets))]


def test_every_metric_of_every_target_is_trec_eval_s_to_twelve_digits(rankings):
    measures = [*(Success @ k for k in CUTOFFS), *(nDCG @ k for k in CUTOFFS), RR]
    ours = measure(rank_targets(*rankings), CUTOFFS)
    assert len(measures) == len(metric_names(CUTOFFS))
    torch.testing.assert_close(ours, torch.tensor(theirs(measures, rankings), dtype=torch.float64), rtol=0, atol=1e-12)


def test_the_rankings_have_every_rank_that_matters(rankings):
    """Metrics that are 0 or 1 throughout would agree with anything."""
    ranks = rank_targets(*rankings)
    assert set(range(12)) <= set(ranks.above.tolist())
    assert ranks.above.max() >= CUTOFFS[-1]
