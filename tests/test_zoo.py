"""The table of public networks says what was refused as well as what was measured."""

import _zoo_networks
import zoo

from segdeploy.spec import Precision


def test_every_public_network_says_where_it_is_from() -> None:
    names = [network.name for network in _zoo_networks.NETWORKS]
    assert len(set(names)) == len(names) >= 7
    assert all(network.licence and network.fetch and network.source for network in _zoo_networks.NETWORKS)


def test_the_table_has_a_row_for_a_graph_that_was_refused() -> None:
    """A network that could not be adopted is a result, not a row that is missing."""
    refused = zoo.Graph(precision=Precision.INT8, refused="not inside the budget")
    made = zoo.Graph(precision=Precision.INT8, form="unsigned", agreement=0.9999, near_ties=0.0, low_share=0.75)
    row = zoo.Measured(
        name="u2netp",
        options="--preset",
        preprocessing=None,
        notes=(),
        images=3,
        adopt_s=1.0,
        graphs=(refused, made),
        ratio=0.5,
    )
    text = zoo.table([row])
    assert "refused: not inside the budget" in text
    assert "| int8 unsigned | 99.9900% | 0.0000% | 75.0000% | 0.50 | - |" in text
