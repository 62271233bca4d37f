from mpo.seeds import permutation, row_seed


def test_seeds_are_the_same_everywhere_and_differ_by_position() -> None:
    assert row_seed(0, 1) == 0xA5CABE61309CBDB1
    assert len({row_seed(seed, index) for seed in range(4) for index in range(100)}) == 400


def test_permutation_holds_every_number_once_and_depends_on_every_seed() -> None:
    orders = [permutation(20, 0, 0), permutation(20, 0, 1), permutation(20, 1, 0)]
    assert all(sorted(order) == list(range(20)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3
    assert permutation(20, 0, 0) == orders[0]
