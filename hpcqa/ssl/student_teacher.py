"""The student, its slowly following teacher, and what they are asked: crops, masked patches, defects, numbers.

Source: DINOv2 (arXiv:2304.07193) section 4 for crops and patches; the injected defects and numbers are hpcqa's own.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from hpcqa.config import SslConfig
from hpcqa.parallel.torchdist import World, is_sharded, local, whole
from hpcqa.ssl import draws, losses
from hpcqa.ssl.defects import Injected
from hpcqa.ssl.encode import autocast
from hpcqa.ssl.schedules import Point
from hpcqa.ssl.views import Crops
from hpcqa.ssl.vit import VisionTransformer, from_architecture

# Purposes of the images' keys in stochastic depth; below them are those of the views' crops (trainer.py, views.py).
INJECTED, LARGE, SMALL = 20000, 20001, 20003


# A view, and which of its losses: "dino", "ibot" or "koleo".
Key = tuple[str, str]
# Of all ranks, and where this rank's begin.
Rows = tuple[Tensor, int]
FEW_SCORES = 1 << 18  # of all ranks: 1 MiB


@dataclass
class Task:
    """What the networks are asked about one view in one piece of a step.

    Each of `crops`, `injected` and `numbers` (float32 (B, F), NaN unknown) is None where the view has not that task.

    Attributes:
        total: images of the whole step, of all ranks.
        of_ranks: images of each rank in this piece.
        keys: int64 (B,), the images' random keys in this step.
    """

    total: int
    of_ranks: list[int]
    keys: Tensor
    crops: Crops | None
    injected: Injected | None
    numbers: Tensor | None


class ProjectionHead(nn.Module):
    """Three layers to a normalised bottleneck, then unit prototypes. Source: arXiv:2104.14294 appendix C."""

    def __init__(self, dim: int, ssl: SslConfig) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(dim, ssl.head_hidden),
            nn.GELU(),
            nn.Linear(ssl.head_hidden, ssl.head_hidden),
            nn.GELU(),
            nn.Linear(ssl.head_hidden, ssl.head_bottleneck),
        )
        self.prototypes = nn.Parameter(torch.empty(ssl.prototypes, ssl.head_bottleneck))
        for module in self.mlp:
            if isinstance(module, nn.Linear):
                # Keeps the spread of the input, so that images are told apart from the first step on.
                nn.init.xavier_normal_(module.weight, gain=1.4)
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.prototypes)

    def forward(self, x: Tensor) -> Tensor:
        """Scores (..., K) of features (..., D)."""
        x = F.normalize(self.mlp(x), dim=-1, eps=1e-6)
        return F.linear(x, F.normalize(self.prototypes, dim=-1).to(x.dtype))


class NumberHead(nn.Module):
    """Predicts the measured numbers from CLS and the mean of the patches."""

    def __init__(self, dim: int, num_numbers: int) -> None:
        super().__init__()
        self.out = nn.Linear(2 * dim, num_numbers)

    def forward(self, cls: Tensor, patches: Tensor) -> Tensor:
        out: Tensor = self.out(torch.cat([cls, patches.mean(1)], dim=-1))
        return out


class Answers(NamedTuple):
    """What a network says about one view: scores of crops (global first), features, patches, defects, numbers.

    A tuple, not a dataclass, because sharding looks into tuples for the tensors that its backward hooks hang on.
    """

    crops: list[Tensor]
    features: Tensor | None = None
    patches: Tensor | None = None
    defects: tuple[Tensor, Tensor] | None = None
    numbers: Tensor | None = None


class Learner(nn.Module):
    """The backbone and its heads; a head exists only where a task uses it, so that every parameter gets a gradient."""

    def __init__(self, backbone: VisionTransformer, ssl: SslConfig, number_views: Mapping[str, int]) -> None:
        super().__init__()
        dim = backbone.architecture.dim
        self.ssl = ssl
        self.backbone = backbone
        by_crops = bool(set(ssl.crop_views) & set(ssl.views))
        self.uses_dino = by_crops and ssl.dino_weight > 0
        self.uses_ibot = by_crops and ssl.ibot_weight > 0
        self.head: ProjectionHead | None = None
        self.patch_head: ProjectionHead | None = None
        if self.uses_dino or (self.uses_ibot and ssl.shared_head):
            self.head = ProjectionHead(dim, ssl)
        if self.uses_ibot and not ssl.shared_head:
            self.patch_head = ProjectionHead(dim, ssl)
        self.numbers = nn.ModuleDict({view: NumberHead(dim, count) for view, count in number_views.items()})
        # What no task uses must not wait for a gradient: a view may have lost its only one to an ablation.
        self.backbone.mask_token.requires_grad_(self.uses_ibot)
        cropped = ssl.crop_views if self.uses_dino or self.uses_ibot or ssl.koleo_weight else []
        for view, stem in self.backbone.stems.items():
            stem.requires_grad_(view in backbone.defects or view in cropped)

    def head_for_patches(self) -> ProjectionHead:
        head = self.patch_head if self.patch_head is not None else self.head
        assert head is not None
        return head

    def forward(self, tasks: Mapping[str, Task]) -> dict[str, Answers]:
        """The student's answers for every view."""
        return {view: self._view(view, task) for view, task in tasks.items()}

    def _view(self, view: str, task: Task) -> Answers:
        answers = Answers([]) if task.crops is None else self._answer_crops(view, task.crops, task.keys)
        if task.injected is not None:
            tokens = self.backbone(task.injected.images, view, keys=draws.derived(task.keys, INJECTED))
            answers = answers._replace(defects=self.backbone.defects[view](tokens))
            if task.numbers is not None:
                answers = answers._replace(numbers=self.numbers[view](tokens.cls, tokens.patches))
        return answers

    def _answer_crops(self, view: str, crops: Crops, keys: Tensor) -> Answers:
        batch = crops.large.shape[1]
        masked = crops.masked.flatten(0, 1) if self.uses_ibot else None
        large_keys = _keys_of(keys, LARGE, 2)
        large = self.backbone(crops.large.flatten(0, 1), view, masked, large_keys, cls_only=masked is None)
        scores: list[Tensor] = []
        if self.uses_dino and self.head is not None:
            cls = large.cls
            if len(crops.small):
                small_keys = _keys_of(keys, SMALL, len(crops.small))
                small = self.backbone(crops.small.flatten(0, 1), view, keys=small_keys, cls_only=True)
                cls = torch.cat([cls, small.cls])
            scores = list(self.head(cls).view(2 + len(crops.small), batch, -1))
        patches = None if masked is None else self.head_for_patches()(large.patches[masked])
        return Answers(scores, large.cls[:batch], patches)

    @torch.no_grad()
    def teach(self, view: str, crops: Crops) -> Answers:
        """The teacher's answers for the whole global crops: their scores, and those of the patches masked elsewhere."""
        batch = crops.large.shape[1]
        tokens = self.backbone(crops.large.flatten(0, 1), view, cls_only=not self.uses_ibot)
        scores = list(self.head(tokens.cls).view(2, batch, -1)) if self.uses_dino and self.head is not None else []
        patches = self.head_for_patches()(tokens.patches[crops.masked.flatten(0, 1)]) if self.uses_ibot else None
        return Answers(scores, tokens.cls, patches)


def _keys_of(keys: Tensor, purpose: int, crops: int) -> Tensor:
    """Keys (crops * B,) for stochastic depth, crop by crop."""
    return torch.cat([draws.derived(keys, purpose + number) for number in range(crops)])


class Teacher:
    """An exponential moving average of the student, and the balance of its targets."""

    def __init__(self, student: Learner) -> None:
        self.network = copy.deepcopy(student).requires_grad_(False).eval()
        kinds = ("dino", "ibot")
        self.centres = {kind: torch.zeros(student.ssl.prototypes) for kind in kinds}

    def to(self, device: torch.device) -> Teacher:
        self.network.to(device)
        self.centres = {kind: centre.to(device) for kind, centre in self.centres.items()}
        return self

    @torch.no_grad()
    def follow(self, student: Learner, momentum: float) -> None:
        """Move towards the student, which is sharded as the teacher is. Source: arXiv:2104.14294 section 3.1."""
        own, theirs = (local(p.detach() for p in network.parameters()) for network in (self.network, student))
        torch._foreach_lerp_(own, theirs, 1 - momentum)

    def backbone(self) -> VisionTransformer:
        """The whole backbone, on every rank; all ranks call this together."""
        if not is_sharded(self.network):
            return self.network.backbone
        sharded = self.network.backbone
        gathered = from_architecture(sharded.architecture, seed=0)
        gathered.load_state_dict(whole(sharded.state_dict()))
        return gathered.to(next(iter(local(sharded.parameters()))).device).eval()

    def targets(
        self, scores: Mapping[Key, Tensor], every: Mapping[Key, Rows], temperature: float, world: World
    ) -> dict[Key, Tensor]:
        """Balanced targets (M, K) for teacher scores (M, K), each balanced by itself, in the same collectives.

        Args:
            every: scores of all ranks, if they are here: then nothing more is sent.
        """
        if self.network.ssl.centring != "sinkhorn":
            return {key: self._centred(key[1], own, temperature, world) for key, own in scores.items()}
        if not set(scores) <= set(every):
            return dict(zip(scores, losses.sinkhorn(list(scores.values()), temperature, world), strict=True))
        whole = losses.sinkhorn([every[key][0] for key in scores], temperature, world.alone())
        own = {key: slice(every[key][1], every[key][1] + len(scores[key])) for key in scores}
        return {key: rows[own[key]] for key, rows in zip(scores, whole, strict=True)}

    def _centred(self, kind: str, scores: Tensor, temperature: float, world: World) -> Tensor:
        targets = losses.centred(scores, self.centres[kind], temperature)
        self.centres[kind] = losses.moved_centre(self.centres[kind], scores, world)
        return targets


@dataclass
class Targets:
    """The teacher's targets for one view: (B, K) of each global crop, and (M, K) of the masked patches."""

    crops: list[Tensor]
    patches: Tensor | None


class Outcome(NamedTuple):
    """What came of a piece of a step: loss terms as "loss_view", whose sum is minimised, targets, and features."""

    terms: dict[str, Tensor]
    targets: dict[str, Targets]
    features: dict[str, Tensor]


def outcome_of(
    runner: nn.Module, teacher: Teacher, tasks: Mapping[str, Task], point: Point, ssl: SslConfig, world: World
) -> Outcome:
    """Have the student, which `runner` runs, and the teacher do some tasks.

    The crops first: while the student looks for defects, what the ranks need of each other's crops is on its way, and
    none of them waits for the slowest.
    """
    with_crops = {view: task for view, task in tasks.items() if task.crops is not None}
    injected = {view: task for view, task in tasks.items() if task.injected is not None}
    with autocast(world.device, ssl.precision):
        of_crops = _run(runner, {view: replace(task, injected=None) for view, task in with_crops.items()})
        scores = _scores(teacher, with_crops)
        features = {view: answer.features for view, answer in of_crops.items() if answer.features is not None}
        exchanged = _exchanged(scores, features, tasks, ssl, world)
        answers = _run(runner, {view: replace(task, crops=None) for view, task in injected.items()})
    every = exchanged()
    balanced = teacher.targets(scores, every, point.teacher_temperature, world)
    crops_of = {view: balanced[view, "dino"].chunk(2) if (view, "dino") in balanced else () for view in with_crops}
    targets = {view: Targets(list(crops_of[view]), balanced.get((view, "ibot"))) for view in with_crops}
    terms: dict[str, Tensor] = {}
    for view, task in tasks.items():
        share = world.size / task.total
        if task.crops is not None:
            terms |= _crop_terms(view, of_crops[view], targets[view], task.crops, ssl, share)
        if task.injected is not None:
            terms |= _injected_terms(view, answers[view], task.injected, task.numbers, ssl, share)
    for (view, kind), (rows, start) in every.items():
        if kind == "koleo":
            loss = losses.koleo(features[view], rows, start, world.size / tasks[view].total)
            terms[f"koleo_{view}"] = ssl.koleo_weight * loss
    return Outcome(terms, targets, features)


def _run(runner: nn.Module, tasks: Mapping[str, Task]) -> dict[str, Answers]:
    return runner(tasks) if tasks else {}


def _scores(teacher: Teacher, tasks: Mapping[str, Task]) -> dict[Key, Tensor]:
    """The teacher's scores of crops."""
    scores: dict[Key, Tensor] = {}
    for view, task in tasks.items():
        assert task.crops is not None
        answers = teacher.network.teach(view, task.crops)
        if answers.crops:
            scores[view, "dino"] = torch.cat(answers.crops)
        if answers.patches is not None:
            scores[view, "ibot"] = answers.patches
    return scores


def _exchanged(
    scores: Mapping[Key, Tensor], features: Mapping[str, Tensor], tasks: Mapping[str, Task], ssl: SslConfig,
    world: World,
) -> Callable[[], dict[Key, Rows]]:  # fmt: skip
    """Have features go to all ranks, and the scores too if they are few: every rank then balances those of all."""
    sent = {(view, "koleo"): rows for view, rows in features.items()} if ssl.koleo_weight else {}
    lengths = {key: tasks[key[0]].of_ranks for key in sent}
    # How many patches are masked on another rank is not known here.
    of_ranks = {key: [2 * num for num in tasks[key[0]].of_ranks] for key in scores if key[1] == "dino"}
    num = sum(sum(of_ranks[key]) * scores[key].shape[1] for key in of_ranks)
    if ssl.centring == "sinkhorn" and len(of_ranks) == len(scores) and num <= FEW_SCORES:
        sent, lengths = {**sent, **scores}, {**lengths, **of_ranks}
    arrived = world.gather([rows.detach().float() for rows in sent.values()], [lengths[key] for key in sent])
    return lambda: dict(zip(sent, arrived(), strict=True))


def _crop_terms(
    view: str, answer: Answers, targets: Targets, crops: Crops, ssl: SslConfig, share: float
) -> dict[str, Tensor]:
    terms = {}
    if targets.crops:
        terms[f"dino_{view}"] = ssl.dino_weight * losses.dino(answer.crops, targets.crops, ssl.temperature, share)
    if targets.patches is not None and answer.patches is not None:
        masked = crops.masked.flatten(0, 1)
        loss = losses.ibot(
            answer.patches, targets.patches, masked.nonzero()[:, 0], len(masked), ssl.temperature, share / 2
        )
        terms[f"ibot_{view}"] = ssl.ibot_weight * loss
    return terms


def _injected_terms(
    view: str, answer: Answers, injected: Injected, numbers: Tensor | None, ssl: SslConfig, share: float
) -> dict[str, Tensor]:
    terms = {}
    if answer.defects is not None:
        loss = losses.defects(*answer.defects, injected.kinds, injected.patches, share)
        terms[f"defect_{view}"] = ssl.defect_weight * loss
    if numbers is not None and answer.numbers is not None:
        terms[f"number_{view}"] = ssl.number_weight * losses.numbers(answer.numbers, numbers, share)
    return terms


def parameter_groups(learner: Learner, layer_decay: float) -> list[dict[str, object]]:
    """Groups for AdamW: a learning rate that falls with the distance from the output, no weight decay on vectors.

    Each group has `scale` (of the learning rate), `decays` and `is_last` (the prototypes).
    """
    depth = learner.backbone.architecture.depth
    groups: dict[tuple[float, bool, bool], list[nn.Parameter]] = {}
    for name, parameter in learner.named_parameters():
        if not parameter.requires_grad:
            continue
        scale = layer_decay ** (depth + 1 - _layer(name, depth))
        decays = parameter.ndim > 1 and not name.endswith(("_token", "_tokens", ".cls", ".position"))
        groups.setdefault((scale, decays, name.endswith("prototypes")), []).append(parameter)
    return [
        {"params": parameters, "scale": scale, "decays": decays, "is_last": is_last}
        for (scale, decays, is_last), parameters in groups.items()
    ]


def _layer(name: str, depth: int) -> int:
    """0 for the stems and tokens, 1 to depth for the blocks, depth + 1 for what follows."""
    if name.startswith("backbone.blocks."):
        return int(name.split(".")[2]) + 1
    first = ("backbone.stems.", "backbone.cls_token", "backbone.register_tokens", "backbone.mask_token")
    return 0 if name.startswith(first) else depth + 1
