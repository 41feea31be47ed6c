"""Where the numbers of a run go: always into ``metrics.csv``, on request into TensorBoard and wandb."""

import csv
import logging
import netrc
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlparse

from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from musicgen_ft.config.evaluate import EvaluateConfig
from musicgen_ft.config.finetune import FinetuneConfig
from musicgen_ft.config.plain import to_plain
from musicgen_ft.training import throughput

logger = logging.getLogger(__name__)

METRICS_FILE = "metrics.csv"


def metric_names(n_q: int) -> tuple[str, ...]:
    """Names of all metrics of a run."""
    codebooks = range(1, n_q + 1)
    return (
        "train/ce",
        *(f"train/ce_q{k}" for k in codebooks),
        "train/grad_norm",
        "train/lr",
        "train/skipped",
        *throughput.NAMES,
        "valid/ce",
        "valid/ppl",
        *(f"valid/ce_q{k}" for k in codebooks),
        "valid/forgetting_ce",
        "valid/forgetting_delta",
    )


class MetricsCSV(Logger):
    """``metrics.csv``: one row for each step with something to tell, empty where it tells nothing of a metric.

    Rows are only ever appended. A resumed run first drops the rows after the step that it goes on from, which it will
    write again; Lightning's own CSV logger drops all earlier rows.
    """

    def __init__(self, folder: Path, n_q: int) -> None:
        super().__init__()
        self.path = folder / METRICS_FILE
        self._columns = ("step", *metric_names(n_q))

    @property
    def name(self) -> str:
        """Of this logger."""
        return "csv"

    @property
    def version(self) -> str:
        """There is one."""
        return "0"

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """The run's config is in ``config.yaml``."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Appends a row."""
        is_new = not self.path.is_file()
        with self.path.open("a", newline="") as file:
            writer = csv.DictWriter(file, self._columns)
            if is_new:
                writer.writeheader()
            writer.writerow({"step": step} | {name: f"{value:.6g}" for name, value in metrics.items()})

    @rank_zero_only
    def truncate(self, step: int, *, validated: bool = True) -> None:
        """Drops the rows after ``step``, and a last row that a kill has cut.

        Args:
            step: the last one that stays.
            validated: whether its validation stays, too.
        """
        if not self.path.is_file():
            return
        with self.path.open(newline="") as file:
            text = file.read()
        whole = text[: text.rfind("\n") + 1]  # a kill may have cut the last line within a value
        header, *rows = list(csv.reader(whole.splitlines()))
        kept = [row for row in rows if len(row) == len(header) and row[0].isdigit() and int(row[0]) <= step]
        if not validated:
            column = header.index("valid/ce")
            kept = [row for row in kept if int(row[0]) < step or not row[column]]
        named = [dict(zip(header, row, strict=True)) for row in kept]  # an older toolkit's header knows less
        temporary = self.path.with_name(f".{self.path.name}.tmp-{os.getpid()}")
        with temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, self._columns, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(named)
        os.replace(temporary, self.path)


def build_loggers(config: FinetuneConfig, run: Path, *, wandb_id: str) -> list[Logger]:
    """The loggers that the config asks for beside ``metrics.csv``."""
    loggers: list[Logger] = []
    if config.tensorboard:
        loggers.append(TensorBoardLogger(str(run), name="tensorboard", version=""))
    if config.wandb != "off":
        loggers.append(wandb_logger(config, run, wandb_id))
    return loggers


def wandb_logger(config: FinetuneConfig | EvaluateConfig, run: Path, wandb_id: str) -> WandbLogger:
    """A wandb run that a resumed run goes on with; without an account, or a network, it is kept offline."""
    import wandb

    (run / "wandb").mkdir(parents=True, exist_ok=True)  # else wandb takes the temporary folder
    os.environ.setdefault("WANDB_DATA_DIR", str(run.resolve() / "wandb"))  # what waits to be sent: not the user's home

    def start(mode: Literal["online", "offline"], id: str) -> WandbLogger:
        # Not by WandbLogger(offline=...): that sets an environment variable, which wandb reads once in a process.
        return WandbLogger(
            experiment=wandb.init(
                project=config.wandb_project,
                name=run.name,
                dir=run,
                id=id,
                resume="allow",
                config=to_plain(config),
                mode=mode,
                settings=wandb.Settings(init_timeout=30, silent=True),
            )
        )

    if config.wandb == "online" or (config.wandb == "auto" and _has_wandb_account()):
        try:
            return start("online", wandb_id)
        except Exception as error:  # wandb raises its own kinds for a refused key and for no network
            logger.warning(f"wandb: {(str(error).splitlines() or ['no answer'])[0]}")
            wandb_id += "-offline"  # wandb holds the id of a run that did not start
    logger.info(f"wandb: offline, in {run / 'wandb'}; send it later with `wandb sync`")
    return start("offline", wandb_id)


def _has_wandb_account() -> bool:
    """Whether wandb finds a key where `wandb login` leaves it; asking wandb itself ends in a prompt or an error."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    import wandb

    host = urlparse(wandb.Settings().base_url).hostname or ""
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
