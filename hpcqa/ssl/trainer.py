"""The training loop: steps that all ranks agree on, metrics, checkpoints, and leaving when asked to."""

from __future__ import annotations

import logging
import math
import resource
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hpcqa.config import Config
from hpcqa.errors import DataError
from hpcqa.parallel import preemption
from hpcqa.parallel.preemption import Preempted
from hpcqa.parallel.torchdist import World, clipped
from hpcqa.ssl import draws, flops, monitor, schedules, views
from hpcqa.ssl.checkpoint import Checkpoints, TrainState
from hpcqa.ssl.defects import BANK, DefectTask, kinds_of, softening_of
from hpcqa.ssl.encode import as_images, lowers
from hpcqa.ssl.feed import Feed, StepImages, ViewImages
from hpcqa.ssl.student_teacher import Learner, Targets, Task, Teacher, outcome_of, parameter_groups
from hpcqa.ssl.vit import VisionTransformer
from hpcqa.ssl.watch import Watch
from hpcqa.streams import stream_seed

logger = logging.getLogger(__name__)
Writer = Callable[[dict[str, Any]], None]
Check = Callable[[int, Teacher], dict[str, float]]


def fresh_state(backbone: VisionTransformer, config: Config, feed: Feed, world: World) -> TrainState:
    """Student, teacher and optimizer at step 0, the same on every rank."""
    ssl = config.ssl
    numbered = [view for view in ssl.views if view in backbone.defects and view != "focal_plane" and ssl.number_weight]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_seed(config.seed, "heads"))
        student = Learner(backbone, ssl, {view: len(feed.cutouts.number_names) for view in numbered})
    student.to(world.device).train()
    teacher = Teacher(student).to(world.device)
    if ssl.parallel == "fsdp":
        low = lowers(world.device, ssl.precision)
        for network in (student, teacher.network):
            world.shard(network, network.backbone.blocks, bf16=low, methods=["teach"])
    groups = parameter_groups(student, ssl.layer_decay)
    optimizer = torch.optim.AdamW(groups, lr=ssl.lr, betas=(0.9, 0.999), fused=True)
    return TrainState(student, teacher, optimizer)


class Unread(DataError):
    """Images could not be read, or not be trusted; said on all ranks. What was learned since step `kept` is lost."""

    def __init__(self, words: str, kept: int = 0) -> None:
        super().__init__(words)
        self.kept = kept


class Tasks:
    """Turns images into what the networks are asked, on the device."""

    def __init__(self, config: Config, feed: Feed, backbone: VisionTransformer, device: torch.device) -> None:
        self.config, self.device = config, device
        self.stems = backbone.architecture.stems
        self.defects = {view: self._defect_task(view, kinds, feed) for view, kinds in kinds_of(config).items()}

    def _defect_task(self, view: str, kinds: tuple[str, ...], feed: Feed) -> DefectTask:
        ssl, is_stamps = self.config.ssl, view == "detail"
        bank = torch.zeros(0) if is_stamps else torch.from_numpy(feed.bank(view, BANK)).float()
        low, high = ssl.defect_strength
        return DefectTask(
            kinds,
            softening=softening_of(view, self.config),
            patch=self.stems[view].patch,
            share=ssl.defect_share,
            strength=(low, high),
            bank=bank if bank.ndim < 4 else bank[:, 0],
            stamp=self.config.views.stamp if is_stamps else 0,
        ).to(self.device)

    def of(self, view: str, part: ViewImages, step: int) -> Task:
        """The task of a view in a step."""
        ssl = self.config.ssl
        images = as_images(part.images, self.device)
        keys = draws.image_keys(self.config.seed, view, step, part.expnum, part.ccdnum).to(self.device)
        crops = injected = numbers = None
        if view in ssl.crop_views:
            partners = images if part.partners is None else as_images(part.partners, self.device)
            crops = views.crops(images, partners, draws.derived(keys, 1), self.stems[view], ssl)
        if view in self.defects:
            whole = views.turned(images, draws.derived(keys, 2))
            injected = self.defects[view].inject(whole, draws.derived(keys, 3))
            if part.numbers is not None:
                # An injected defect changes what would be measured.
                clean = injected.kinds.sum(1, keepdim=True) == 0
                numbers = torch.from_numpy(part.numbers).to(self.device).masked_fill(~clean, float("nan"))
        return Task(part.total, part.of_ranks, keys, crops, injected, numbers)


class Trainer:
    """Runs the steps of one rank."""

    def __init__(
        self,
        config: Config,
        feed: Feed,
        state: TrainState,
        world: World,
        *,
        checkpoints: Checkpoints | None = None,
        write: Writer | None = None,
        check: Check | None = None,
        watch: Watch | None = None,
    ) -> None:
        """Start from a state.

        Args:
            write: takes lines of metrics.
            check: scores the teacher; all ranks call it together.
            watch: of the files that the images come from.
        """
        self.config, self.feed, self.state, self.world = config, feed, state, world
        self.checkpoints, self.write, self.check = checkpoints, write or (lambda line: None), check
        self.watch = watch
        self.tasks = Tasks(config, feed, state.student.backbone, world.device)
        self.runner: nn.Module = state.student if config.ssl.parallel == "fsdp" else world.replicate(state.student)
        self._times = {"data": 0.0, "step": 0.0, "images": 0.0}
        self._stopping = False
        # The arithmetic of one image, the mean over the mix, and what all devices together could do.
        architecture, images = state.student.backbone.architecture, sum(feed.counts.values())
        self._flops_an_image = flops.of_step(architecture, config.ssl, feed.counts) / images
        self._peak = world.size * self._peak_of_one() if world.is_first and write else float("inf")

    def _peak_of_one(self) -> float:
        """FLOP/s that one device could do."""
        ssl = self.config.ssl
        if ssl.peak_tflops:
            return ssl.peak_tflops * 1e12
        peak = flops.measured_peak(self.world.device, lowers(self.world.device, ssl.precision))
        logger.info("pretrain: mfu is over %.3g TFLOP/s a device, measured by a matrix product", peak / 1e12)
        return peak

    def run(self) -> None:
        """Train to the last step.

        Raises:
            Preempted: this process was asked to stop, and the state is saved.
            Unread: images that cannot be read, or whose files were written to.
            DataError: too many steps in a row, or all, without a finite loss.
        """
        from hpcqa.observe import Tracker  # here, so that a step can be timed where nothing draws progress bars

        ssl, counters = self.config.ssl, self.state.counters
        with Tracker("pretrain", total=ssl.steps, unit="steps", shown=self.world.is_first) as ticker:
            ticker.advance(counters.step)
            before = time.perf_counter()
            for images in self.feed.stream(counters.step, ssl.steps):
                waited = time.perf_counter() - before
                self._one(images, waited, before)
                ticker.advance()
                before = time.perf_counter()
        self._say_skipped()

    def _say_skipped(self) -> None:
        skipped, steps = self.state.counters.skipped, self.config.ssl.steps
        if skipped >= steps:
            raise DataError(
                f"pretrain: none of {steps} steps had losses that are finite; see `why` in metrics.jsonl, and look at "
                "the images that it names."
            )
        if skipped:
            logger.warning("pretrain: %d of %d steps were skipped; `why` in metrics.jsonl says which", skipped, steps)

    def _one(self, images: StepImages, waited: float, began: float) -> None:
        counters, ssl = self.state.counters, self.config.ssl
        line = self.step(images)
        counters.step = images.step + 1
        self._times["data"] += waited
        self._times["step"] += time.perf_counter() - began
        self._times["images"] += sum(self.feed.counts.values())
        counters.images += sum(self.feed.counts.values())
        last = counters.step == ssl.steps
        if line is not None and (counters.step % ssl.log_every == 0 or last):
            self.write({**line, **self._speed(), "step": counters.step, "images": counters.images})
        is_best = self._check(last)
        due = counters.step % ssl.checkpoint_every == 0 or last or self._stopping or is_best
        if due and self.checkpoints is not None:
            self._refuse_changed(images.step)
            self.checkpoints.save(self.state)
        if self._stopping and not last:
            raise Preempted(f"pretrain: asked to stop, saved at step {counters.step}; start it again to go on.")

    def _refuse_changed(self, step: int) -> None:
        """End the run on all ranks if files are no longer what they were.

        Raises:
            Unread: one is gone or was written to.
        """
        if self.watch is not None:
            problem = self.world.said(self.watch.problem())
            if problem:
                raise self._unread(step, problem)

    def _unread(self, step: int, problem: str) -> Unread:
        """The error of a step whose images are not there: the steps since the last checkpoint are not kept."""
        kept = self.world.share(max(self.checkpoints.steps(), default=0) if self.checkpoints is not None else 0)
        return Unread(
            f"pretrain: ended at step {step}: {problem} Remove the damaged shard (`hpcqa verify` names it) and run "
            f"again: `hpcqa shard` makes it anew, and training goes on from step {kept} as if nothing had been.",
            kept,
        )

    def _check(self, last: bool) -> bool:
        """Score the teacher if it is time to; whether it is the best so far."""
        counters, ssl = self.state.counters, self.config.ssl
        due = last or (ssl.knn_every > 0 and counters.step % ssl.knn_every == 0)
        if not due or self.check is None:
            return False
        try:
            found = self.check(counters.step, self.state.teacher)
        except DataError as problem:  # on all ranks, as the check is
            raise self._unread(counters.step, str(problem)) from None
        if found:
            self.write({**found, "step": counters.step, "images": counters.images})
        score = found.get("knn_ap", -1.0)
        if score <= counters.best:
            return False
        counters.best, counters.best_step = score, counters.step
        return True

    def _speed(self) -> dict[str, float]:
        times, self._times = self._times, {"data": 0.0, "step": 0.0, "images": 0.0}
        whole = max(times["step"], 1e-9)
        rate = times["images"] / whole
        return {
            "images_per_s": rate,
            "data_wait_share": times["data"] / whole,
            "tflops": rate * self._flops_an_image / 1e12,
            "mfu": rate * self._flops_an_image / self._peak,
            "memory_gib": self._memory(),
        }

    def _memory(self) -> float:
        """The most that this rank has held so far, in GiB: of its device's memory, or of the node's."""
        if self.world.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.world.device) / 2**30
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20

    def step(self, images: StepImages) -> dict[str, float] | None:
        """One step, or none if any rank's losses are bad; the metrics of the step.

        Raises:
            Unread: a rank cannot read its images; on all ranks.
        """
        ssl, state = self.config.ssl, self.state
        point = schedules.at(ssl, images.step)
        state.optimizer.zero_grad(set_to_none=True)
        unread = self.world.any_of([images.problem is not None])
        first = self._asked(images.pieces[0], images.step) if images.pieces else {}  # meanwhile
        if any(unread()):
            raise self._unread(images.step, self.world.said(str(images.problem or "")))
        terms: dict[str, Tensor] = {}
        extra: dict[str, float] = {}
        for number, piece in enumerate(images.pieces):
            is_last = number == len(images.pieces) - 1
            asked = self._asked(piece, images.step) if number else first
            found, extra = self._piece(asked, images.step, point, is_last)
            for name, value in found.items():
                terms[name] = terms.get(name, torch.zeros((), device=value.device)) + value.detach()
        norm = clipped(state.student.parameters(), ssl.clip or float("inf"))
        # What is not finite on one rank is not finite in the sum, which all ranks see: they agree. So they do about a
        # stop that one of them was asked for.
        values = torch.stack([*terms.values(), norm, norm.new_tensor(float(preemption.requested()))])
        *means, norm_of_all, asked = (self.world.sum(values)[0] / self.world.size).tolist()
        self._stopping = asked > 0
        if not all(map(math.isfinite, [*means, norm_of_all])):
            self._skip(images)
            return None
        self._update(point)
        state.counters.skipped_in_a_row = 0
        named = {f"loss_{name}": value for name, value in zip(terms, means, strict=True)}
        return {
            "loss": sum(means), **named, **extra, "grad_norm": norm_of_all, "lr": point.lr,
            "momentum": point.momentum, "skipped": float(state.counters.skipped),
        }  # fmt: skip

    def _asked(self, piece: Mapping[str, ViewImages], step: int) -> dict[str, Task]:
        return {view: self.tasks.of(view, part, step) for view, part in piece.items()}

    def _piece(
        self, asked: Mapping[str, Task], step: int, point: schedules.Point, is_last: bool
    ) -> tuple[dict[str, Tensor], dict[str, float]]:
        ssl, state = self.config.ssl, self.state
        sync = torch.enable_grad() if is_last else self.world.without_sync(self.runner)
        with sync:
            found = outcome_of(self.runner, state.teacher, asked, point, ssl, self.world)
            total = torch.stack(list(found.terms.values())).sum()
            total.backward()  # type: ignore[no-untyped-call]
        due = (step + 1) % ssl.log_every == 0 and is_last
        return found.terms, _collapse(found.targets, found.features) if due else {}

    def _update(self, point: schedules.Point) -> None:
        state = self.state
        for group in state.optimizer.param_groups:
            group["lr"] = point.lr * group["scale"]
            group["weight_decay"] = point.weight_decay if group["decays"] else 0.0
            if group["is_last"] and point.last_layer_fixed:
                group["lr"] = 0.0
        state.optimizer.step()
        state.teacher.follow(state.student, point.momentum)

    def _skip(self, images: StepImages) -> None:
        """Count a step with a loss that is not finite; too many in a row end the run with the keys of the batch.

        Raises:
            DataError: the limit is reached.
        """
        counters = self.state.counters
        counters.skipped += 1
        counters.skipped_in_a_row += 1
        self.state.optimizer.zero_grad(set_to_none=True)
        why = "a loss that is not finite"
        logger.warning("pretrain: step %d skipped for %s (its images are in metrics.jsonl)", images.step, why)
        self.write({"step": images.step, "skipped": counters.skipped, "why": why, "batch": images.keys()})
        if counters.skipped_in_a_row >= self.config.ssl.max_skipped:
            raise DataError(
                f"pretrain: {counters.skipped_in_a_row} steps in a row with {why}, the last {images.step} (its images "
                "are in metrics.jsonl); look at these images, or lower ssl.lr."
            )


def _collapse(targets: Mapping[str, Targets], features: Mapping[str, Tensor]) -> dict[str, float]:
    """Rank and spread of the embeddings, entropy of the teacher, for every view with crops; this rank's images."""
    found = {}
    for view, target in targets.items():
        own = features[view].detach().float()
        found[f"rank_{view}"], found[f"spread_{view}"] = monitor.effective_rank(own), monitor.spread(own)
        if target.crops:
            each, mean = monitor.entropies(torch.cat(target.crops))
            found[f"teacher_entropy_{view}"], found[f"prototype_entropy_{view}"] = each, mean
    return found
