"""`hlip-train`: every command explains itself, and so does a mistake."""

import subprocess
import sys

from trainer.config import CONFIGS


def test_every_command_of_the_trainer_explains_itself_and_is_in_its_readme():
    import typer

    from trainer.cli import app

    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    assert sorted(commands) == ["bundle", "cohort", "evaluate", "phantom", "pretrain"]
    readme = (CONFIGS.parent / "README.md").read_text()
    for name, command in commands.items():
        assert len(command.help) > 60 and f"hlip-train {name}" in readme
        assert all(getattr(parameter, "help", None) for parameter in command.params), name


def test_a_mistake_is_told_in_a_sentence(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "trainer", "pretrain", "demo", "--set", f"data.cohorts=['{tmp_path}']", "--out",
         str(tmp_path / "run")], capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1 and "no cohort in" in done.stderr and "Traceback" not in done.stderr
