import pytest

from engines.errors import BadRequest
from gateway.cli.options import overrides


def test_settings_become_a_tree_of_typed_values() -> None:
    tree = overrides(["gateway.port=8100", "gateway.host=127.0.0.1", "engines.a.args={x = 1}", "data=my data"])
    assert tree == {
        "gateway": {"port": 8100, "host": "127.0.0.1"},
        "engines": {"a": {"args": {"x": 1}}},
        "data": "my data",
    }


@pytest.mark.parametrize("setting", ["gateway.port", "=3", "gateway..port=1", ".port=1"])
def test_a_setting_of_another_shape_is_refused(setting: str) -> None:
    with pytest.raises(BadRequest, match="key=value"):
        overrides([setting])


def test_a_setting_under_a_value_is_refused() -> None:
    with pytest.raises(BadRequest, match="gateway"):
        overrides(["gateway=1", "gateway.port=2"])
