"""The proof of delivery: agreement by differences, never by absolute values."""

import pytest

from engines.adapter import ProbeRecord
from engines.errors import AdapterRefused
from engines.profiles import PROFILES
from engines.proof import check_agreement, check_delivery
from engines.types import LoadedAdapter, ProbeScore, VersionName

IDS = (7, 8)
BASE = (-2.0, -1.0)
TUNED = (-0.5, -0.2)
NAME = VersionName("vqa", 1)
PROFILE = PROFILES["qwen3_vl"]
MODULES = [f"model.language_model.layers.0.self_attn.{leaf}" for leaf in ("q_proj", "k_proj", "v_proj", "o_proj")]
MATCHED = ("language_model.model.layers.0.self_attn.qkv_proj", "language_model.model.layers.0.self_attn.o_proj")


def record(adapter: tuple[float, ...] = TUNED) -> ProbeRecord:
    return ProbeRecord(
        text="what color?",
        answer="teal",
        image=None,
        num_tokens=2,
        token_ids=IDS,
        base_logprobs=BASE,
        adapter_logprobs=adapter,
    )


def score(logprobs: tuple[float, ...], ids: tuple[int, ...] = IDS) -> ProbeScore:
    return ProbeScore(ids, logprobs)


def shifted(values: tuple[float, ...], by: float) -> tuple[float, ...]:
    return tuple(v + by for v in values)


def loaded(sha256: str = "aa", modules: tuple[str, ...] = MATCHED) -> LoadedAdapter:
    return LoadedAdapter(NAME, 1, sha256, modules)


def test_an_engine_in_another_number_format_agrees_by_differences() -> None:
    agreement = check_agreement([record()], [score(shifted(BASE, -0.4))], [score(shifted(TUNED, -0.4))])
    assert agreement.is_measurable
    assert agreement.error == pytest.approx(0.0)
    assert agreement.effect == pytest.approx(1.15)


def test_an_engine_that_serves_the_base_instead_is_found() -> None:
    with pytest.raises(AdapterRefused, match="does not serve what was trained"):
        check_agreement([record()], [score(BASE)], [score(BASE)])


def test_an_engine_that_serves_another_adapter_is_found() -> None:
    with pytest.raises(AdapterRefused, match="does not serve what was trained"):
        check_agreement([record()], [score(BASE)], [score(shifted(BASE, -1.0))])


def test_a_near_zero_adapter_passes_but_proves_nothing_by_differences() -> None:
    tiny = shifted(BASE, 0.001)
    agreement = check_agreement([record(tiny)], [score(BASE)], [score(BASE)])
    assert not agreement.is_measurable


def test_a_prompt_that_the_engine_tokenizes_otherwise_is_named() -> None:
    with pytest.raises(AdapterRefused, match="probe prompt 0"):
        check_agreement([record()], [score(BASE)], [score(TUNED, ids=(7, 9))])


def test_modules_that_the_engine_fuses_count_as_matched() -> None:
    assert "2 matched modules" in check_delivery(loaded(), "aa", MODULES, PROFILE)


def test_a_module_that_the_engine_dropped_is_named() -> None:
    with pytest.raises(AdapterRefused, match="o_proj"):
        check_delivery(loaded(modules=MATCHED[:1]), "aa", MODULES, PROFILE)


def test_weights_other_than_the_registrys_are_refused() -> None:
    with pytest.raises(AdapterRefused, match="other weights"):
        check_delivery(loaded(sha256="bb"), "aa", MODULES, PROFILE)
