"""The training loop: one file to read in one sitting.

After every epoch `<name>.last.safetensors` holds all that a resumed run needs and, where the score is the best so far,
`<name>.safetensors` the network; a run has the name of its Spec. Every epoch seeds itself,
so a run that was killed and resumed gives the weights of one that was not.
"""

import contextlib
import dataclasses
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segdeploy import artifact, fitting, images, locks, metrics, models, typed_json
from segdeploy._version import __version__
from segdeploy.checkpoints import checkpoint
from segdeploy.checkpoints.foreign import Encoder
from segdeploy.data import dataset
from segdeploy.errors import InvalidFileError, InvalidRequestError, MissingRuntimeError
from segdeploy.names import below, require_new_name
from segdeploy.origin import Origin, TrainingOrigin, ValidationPicture
from segdeploy.spec import Spec
from segdeploy.training import losses
from segdeploy.training.data import TrainingData, batches, loader
from segdeploy.training.options import EpochRecord, TrainOptions

AUXILIARY_WEIGHT = 0.4  # PSPNet, sec. 5.1, table 1
POLY_POWER = 0.9
MOST_REMEMBERED = 64  # validation images that a checkpoint names


class TrainingProgress(Protocol):
    """What the training loop reports as it goes; the command draws its progress bar from it."""

    def steps(self, total: int, done: int) -> None: ...
    def step(self, *, epoch: int, loss: float, miou: float | None) -> None: ...
    def epoch(self, record: EpochRecord) -> None: ...


def train(
    data: dataset.Dataset,
    spec: Spec,
    options: TrainOptions,
    out: Path,
    *,
    resume: bool,
    progress: TrainingProgress,
    encoder: Encoder | None = None,
) -> Path:
    """Train the network of `spec`; give the path of the best checkpoint by mIoU on `data.val`.

    The name of `spec` begins the names of the run's files in `out`. Raise InvalidRequestError where another process
    trains under that name in `out`. `encoder`: what the network begins with.
    """
    name = spec.name
    run = _Run(data, spec, options, below(out, name), encoder)
    with _owned(out, name):
        return _trained(run, options, below(out / "tensorboard", name), resume=resume, progress=progress)


def require_run_name(name: str, model: str) -> str:
    """What a run may be called. Raise InvalidRequestError for the name of another network, and for no plain name."""
    if name != model and name in models.names():
        raise InvalidRequestError(
            f"a run of {model} cannot be called {name}: other commands would take it for that network.",
            "Give another --name.",
        )
    return require_new_name(name, "a run")


@contextlib.contextmanager
def _owned(out: Path, name: str) -> Iterator[None]:
    """Own the files of a run: two processes would mix theirs."""
    place = out / f".{name}.lock"
    with contextlib.ExitStack() as stack:
        try:
            out.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locks.owned(place))
        except BlockingIOError as error:
            raise InvalidRequestError(
                f"another process is training {name} in {out}.",
                "Wait for it, or give this run another --name or --out.",
            ) from error
        except OSError as error:
            raise artifact.cannot_write(place, error) from error
        yield


def _trained(
    run: "_Run", options: TrainOptions, tensorboard: Path, *, resume: bool, progress: TrainingProgress
) -> Path:
    first = run.resume() if resume else run.start()
    steps = len(run.loader)
    progress.steps(options.epochs * steps, first * steps)
    with _tensorboard(tensorboard, first + 1) as scalars:
        for epoch in range(first, options.epochs):
            record = run.epoch(epoch, progress)
            run.keep(epoch, record)
            scalars(record)
            progress.epoch(record)
    return run.best_path


class _Run:
    def __init__(
        self, data: dataset.Dataset, spec: Spec, options: TrainOptions, begin: Path, encoder: Encoder | None
    ) -> None:
        """`begin`: how the paths of its files begin; `encoder`: what the network begins with."""
        self.spec, self.options, self.data = spec, options, data
        self.best_path = begin.with_name(f"{begin.name}.safetensors")
        self.last_path = begin.with_name(f"{begin.name}.last.safetensors")
        self.log_path = begin.with_name(f"{begin.name}.log.jsonl")
        self.best = -math.inf
        self.validation = _remembered(data.val, begin.parent)
        self.folder = dataset.remembered_folder(data, begin.parent)
        _require(options.device)
        if not data.train:
            raise InvalidRequestError(
                f"{data.root} has no training images: every one of them validates.",
                "List fewer in val.txt, or bring more images.",
            )
        if options.batch > len(data.train):
            raise InvalidRequestError(
                f"{len(data.train)} training images do not fill one batch of {options.batch}.",
                f"Give --batch {len(data.train)} or less, or more images.",
            )
        torch.manual_seed(options.seed)
        self.network = models.rebuild(spec)
        self.imported = None if encoder is None else encoder.origin
        if encoder is not None:
            self.network.load_state_dict(dict(encoder.state), strict=False)
        self.network.check_size(spec.height, spec.width)
        self.network.check_size(*options.augmentation.crop)
        self.network.to(options.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.input = models.deployed(self.network, spec).to(options.device)
        self.samples = TrainingData(data.train, spec, options.augmentation, seed=options.seed)
        self.loader = loader(self.samples, batch=options.batch, workers=options.workers)
        self.weights = self._class_weights()
        self.optimiser = torch.optim.AdamW(
            self.network.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay
        )

    def start(self) -> int:
        if self.last_path.is_file():
            raise InvalidRequestError(
                f"{self.last_path} holds an earlier run, which would be lost.",
                "Go on with it: --resume. Or start another: --name NAME, or --out FOLDER.",
            )
        self.log_path.unlink(missing_ok=True)
        return 0

    def resume(self) -> int:
        """Give the number of epochs done, with network, optimiser and log as they were then."""
        if not self.last_path.is_file():
            raise InvalidRequestError(
                f"there is nothing to resume: {self.last_path} does not exist.",
                "Leave --resume out to start, or name the first run: --out, --name.",
            )
        state = checkpoint.read(self.last_path)
        done, self.best = _resumable(state, self.spec, self.options)
        tensors = checkpoint.tensors(self.last_path)
        momentum = {
            name.removeprefix(checkpoint.MOMENTUM): tensors.pop(name)
            for name in list(tensors)
            if checkpoint.MOMENTUM in name
        }
        checkpoint.load_into(self.network, tensors, self.last_path)
        _restore(self.optimiser, momentum)
        lines = self.log_path.read_text(encoding="utf-8").splitlines(keepends=True)
        artifact.write_atomically(self.log_path, "".join(lines[:done]).encode())
        return done

    def epoch(self, epoch: int, progress: TrainingProgress) -> EpochRecord:
        """One pass over the training images and one over the validation images."""
        started = time.monotonic()
        torch.manual_seed(int(np.random.SeedSequence((self.options.seed, epoch)).generate_state(1)[0]))
        self.samples.epoch = epoch
        self.network.train()
        counts = np.zeros((len(self.spec.classes),) * 2, np.int64)
        total = 0.0
        for step, (photos, truth) in enumerate(batches(self.loader)):
            self._set_learning_rate(epoch * len(self.loader) + step)
            loss, predicted = self._step(photos.to(self.options.device), truth.to(self.options.device))
            counts += self._confusion(truth.numpy().astype(np.uint8), predicted)
            total += loss
            progress.step(epoch=epoch + 1, loss=total / (step + 1), miou=metrics.miou(counts))
        val = self.validate()
        return EpochRecord(
            epoch=epoch + 1,
            loss=total / len(self.loader),
            learning_rate=self.optimiser.param_groups[0]["lr"],
            train_miou=metrics.miou(counts),
            val_miou=metrics.miou(val),
            val_pixel_accuracy=metrics.pixel_accuracy(val),
            seconds=round(time.monotonic() - started, 2),
        )

    def validate(self) -> metrics.Confusion:
        """Confusion at the size of the labels, as `segdeploy eval` measures it."""
        self.network.eval()
        counts = np.zeros((len(self.spec.classes),) * 2, np.int64)
        for sample in self.data.val:
            truth = sample.required_truth(classes=len(counts), ignore_index=self.spec.ignore_index)
            class_map = fitting.drawn(images.read(sample.image), self.spec, self._classify)
            counts += self._confusion(truth, images.to_photo_size(class_map, height=len(truth), width=truth.shape[1]))
        return counts

    def _classify(self, batch: NDArray[np.uint8]) -> NDArray[np.uint8]:
        with torch.inference_mode():
            class_maps: NDArray[np.uint8] = self.input(torch.from_numpy(batch).to(self.options.device)).cpu().numpy()
        return class_maps

    def keep(self, epoch: int, record: EpochRecord) -> None:
        """Log, best and last, in that order: whatever is cut off is made again by `resume`."""
        with self.log_path.open("a", encoding="utf-8") as log:
            log.write(json.dumps(typed_json.to_builtins(record)) + "\n")
        score = record.val_miou if record.val_miou is not None else -record.loss
        training = TrainingOrigin(
            epoch=epoch + 1,
            val_miou=record.val_miou,
            plan=_json(self.options),
            validation=self.validation,
            folder=self.folder,
        )
        if score > self.best:
            self.best = score
            self._save(self.best_path, self.network.state_dict(), training)
        everything = {**self.network.state_dict(), **_momentum(self.optimiser)}
        self._save(self.last_path, everything, dataclasses.replace(training, best=self.best))

    def _save(self, path: Path, tensors: Mapping[str, Tensor], training: TrainingOrigin) -> None:
        origin = Origin(command="train", version=__version__, training=training, imported=self.imported)
        checkpoint.save(path, tensors, self.spec, origin=origin, made_at=artifact.now())

    def _step(self, photos: Tensor, truth: Tensor) -> tuple[float, metrics.ClassMap]:
        x = self.input.normalised(photos).contiguous(memory_format=torch.channels_last)
        logits, auxiliary = self._forward(x)
        loss = self._loss(logits, truth)
        if auxiliary is not None:
            loss = loss + AUXILIARY_WEIGHT * self._loss(auxiliary, truth)
        if not torch.isfinite(loss):
            raise InvalidRequestError(
                f"the training has diverged: the loss is {float(loss.detach())}.",
                f"Start anew with --learning-rate below {self.options.learning_rate:g}.",
            )
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimiser.step()
        return float(loss.detach()), logits.detach().argmax(dim=1).to(torch.uint8).cpu().numpy()

    def _forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        try:
            return self.network.forward_with_auxiliary(x)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise InvalidRequestError(
                f"{self.spec.model} normalises over the batch, and a batch of {len(x)} leaves a map of one pixel.",
                f"Give --batch {len(x) + 1} or more.",
            ) from error

    def _loss(self, logits: Tensor, truth: Tensor) -> Tensor:
        return losses.cross_entropy(logits, truth, ignore_index=self.spec.ignore_index, weights=self.weights)

    def _confusion(self, truth: metrics.ClassMap, predicted: metrics.ClassMap) -> metrics.Confusion:
        return metrics.confusion(truth, predicted, classes=len(self.spec.classes), ignore_index=self.spec.ignore_index)

    def _set_learning_rate(self, step: int) -> None:
        left = 1 - step / (self.options.epochs * len(self.loader))
        for group in self.optimiser.param_groups:
            group["lr"] = self.options.learning_rate * left**POLY_POWER

    def _class_weights(self) -> Tensor | None:
        if self.options.class_weights == "none":
            return None
        truths = (truth for _, truth in self.samples.pairs())
        K, ignored = len(self.spec.classes), self.spec.ignore_index
        weights = losses.median_frequency(*losses.class_pixels(truths, classes=K, ignore_index=ignored))
        return torch.from_numpy(weights).float().to(self.options.device)


def _require(device: str) -> None:
    if device != "cpu" and not torch.cuda.is_available():
        raise MissingRuntimeError(
            f"device {device} was asked for, and PyTorch {torch.__version__} sees no GPU.",
            "Give --device cpu, or install the PyTorch build of your CUDA.",
        )


def _remembered(pictures: Sequence[dataset.Picture], out: Path) -> tuple[ValidationPicture, ...]:
    """Some of the validation images, evenly spread, as a checkpoint in `out` names them."""
    some = pictures[:: max(1, -(-len(pictures) // MOST_REMEMBERED))]
    return tuple(
        ValidationPicture(
            image=os.path.relpath(each.image, out),
            image_sha256=artifact.sha256(each.image),
            mask=os.path.relpath(each.label, out),
            mask_sha256=each.reading.sha256(each.label),
        )
        for each in some
    )


def _resumable(state: artifact.Artifact, spec: Spec, options: TrainOptions) -> tuple[int, float]:
    """The number of epochs done and the best score. Raise InvalidFileError where the run had other options."""
    training = state.origin.training
    if training is None or training.best is None:
        different = "it is no file of --resume"
    else:
        # Not the name: segdeploy 0.1 did not keep it, and the run was found by it.
        before = {**dataclasses.asdict(dataclasses.replace(state.spec, name=spec.name)), **training.plan}
        now = {**dataclasses.asdict(spec), **_json(options)}
        changed = [key for key in now if before.get(key) != now[key]]
        different = "; ".join(f"{key} {before.get(key)}, now {now[key]}" for key in changed)
        if not different:
            return training.epoch, training.best
    raise InvalidFileError(
        f"{state.path} was made with other options: {different}.", "Resume with the options of the first run."
    )


def _json(options: TrainOptions) -> Any:  # noqa: ANN401 - a JSON value
    """The options as they read back from a checkpoint."""
    return json.loads(json.dumps(dataclasses.asdict(options)))


def _momentum(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    state = optimiser.state_dict()["state"]
    return {
        f"{checkpoint.MOMENTUM}{index}/{name}": value for index, kept in state.items() for name, value in kept.items()
    }


def _restore(optimiser: torch.optim.Optimizer, momentum: Mapping[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in momentum.items():
        index, name = key.split("/")
        state.setdefault(int(index), {})[name] = value
    optimiser.load_state_dict({**optimiser.state_dict(), "state": state})


@contextlib.contextmanager
def _tensorboard(folder: Path, first_epoch: int) -> Iterator[Callable[[EpochRecord], None]]:
    """Scalars by epoch for TensorBoard where it is installed, in place of an earlier run's from `first_epoch` on."""
    try:
        from torch.utils.tensorboard.writer import SummaryWriter
    except ImportError:
        yield lambda _: None
        return
    with SummaryWriter(str(folder), purge_step=first_epoch) as writer:

        def scalars(record: EpochRecord) -> None:
            for name, value in dataclasses.asdict(record).items():
                if value is not None and name != "epoch":
                    writer.add_scalar(name, value, record.epoch)

        yield scalars
