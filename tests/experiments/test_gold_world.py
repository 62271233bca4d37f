import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(folder: Path) -> str:
    command = [sys.executable, "-m", "experiments.gold_world", "--small", "--seeds", "2", "--processes", "2"]
    command += ["--out", str(folder / "out"), "--docs", str(folder / "docs")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_a_small_world_runs_from_pairs_to_page(tmp_path: Path) -> None:
    printed = run(tmp_path)
    assert "2 of 2 worlds" in printed
    for seed in range(2):
        result = json.loads((tmp_path / "out" / str(seed) / "result.json").read_text())
        assert result["easy"] + result["difficult"] == result["pairs"]
        assert 0 < result["wrong_labels"] < 0.5
        arms = result["arms"]
        assert arms["sft"]["kl"] == pytest.approx(0, abs=1e-5)
        assert all(arms[arm]["kl"] > 1e-3 for arm in ("dpo_easy", "mpo", "dpo_all"))
        assert all(len(answers["gold"]) == 24 for answers in arms.values())
    page = (tmp_path / "docs" / "gold_world.md").read_text()
    assert "| MPO (then PPO on difficult) − SFT |" in page
    assert page in printed
    assert "gold reward" in (tmp_path / "docs" / "gold_world.svg").read_text()


def test_both_engines_train_the_same_worlds(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Page\n")
    command = [sys.executable, "-m", "experiments.gold_world.engines", "--small", "--seeds", "2"]
    command += ["--out", str(tmp_path / "out"), "--docs", str(page)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    worlds = [tmp_path / "out" / engine / "0" for engine in ("native", "trl")]
    assert len({(world / "pairs.jsonl.gz").read_bytes() for world in worlds}) == 1
    results = [json.loads((world / "result.json").read_text()) for world in worlds]
    # SFT is one engine's: the same model, to the bit. What the engines trained is not.
    assert results[0]["arms"]["sft"] == results[1]["arms"]["sft"]
    assert results[0]["arms"]["dpo_all"] != results[1]["arms"]["dpo_all"]
    assert all(json.loads((world / "seconds.json").read_text())["dpo_all"] > 0 for world in worlds)
    assert "| DPO on all |" in page.read_text()
