"""What a method promises of training: what learns, what stays, where it starts, and that the answers change for it."""

from __future__ import annotations

from typing import Any

from ftcore.seeds import seeded
from ftcore.testing.kit import Bench, Failed, bench_of
from ftcore.testing.methods.work import (
    answers,
    base_answers,
    base_of,
    batches_of,
    begun,
    fingerprint,
    gap,
    loop_of,
    main_scene,
    packing_of,
    questions,
    shown,
    spread,
    staged,
    stepped,
    trained,
    trained_answers,
)

# What rounding does to the answers of models whose adapter starts as nothing: at most 1.1e-5 in 30 methods tried.
START = 1e-4
# The least that training must change, as a share of the answers; the weakest of 30 methods changed 5e-3 of them.
CHANGE = 1e-3


def check_something_trains(plugin: object, bench: Bench | None = None) -> None:
    """Something trains: the model that it returns has parameters that require a gradient."""
    stage = begun(bench_of("method", plugin, bench))
    odd = [name for name, p in stage.model.named_parameters() if p.requires_grad and (p.is_meta or not p.is_leaf)]
    if odd:
        raise Failed(f"parameter '{odd[0]}' requires a gradient and holds no values of its own, so it cannot train")


def check_leaves_the_rows_alone(plugin: object, bench: Bench | None = None) -> None:
    """Injecting leaves the rows that it is given as they are, and in their order."""
    stage = begun(bench_of("method", plugin, bench))
    if fingerprint(stage.data) != stage.rows_before:
        raise Failed("inject_adapter changed data.train or data.eval; look at rows, and put copies in another order")


def check_not_everything_trains(plugin: object, bench: Bench | None = None) -> None:
    """Not everything trains: most of the base stays frozen."""
    bench = bench_of("method", plugin, bench)
    stage = begun(bench)
    frozen = sum(p.numel() for p in stage.model.parameters() if not p.requires_grad)
    total = sum(p.numel() for p in base_of(bench, main_scene(bench)).model.parameters())
    if frozen < total / 10:
        raise Failed(
            f"of the base's {total:,} numbers only {frozen:,} stay frozen; parameters arrive frozen, so let "
            "inject_adapter make trainable only what the method adds or chooses"
        )


def check_the_model_is_used_as_before(plugin: object, bench: Bench | None = None) -> None:
    """The adapted model takes the base's inputs, answers in its shape, and has its config and its way to generate."""
    bench = bench_of("method", plugin, bench)
    stage, scene = begun(bench), main_scene(bench)
    model: Any = stage.model
    base: Any = base_of(bench, scene).model
    said, wanted = answers(model, questions(scene)), base_answers(bench, scene)
    if said.shape != wanted.shape:
        raise Failed(
            f"the adapted model answers in shape {tuple(said.shape)} and its base in {tuple(wanted.shape)}; "
            "return as many logits for as many tokens"
        )
    try:
        stage.rows.loss(model, stage.rows.collate(stage.rows.train[:3]))
    except Exception as fault:
        raise Failed(
            f"over a batch of training rows its forward pass raises {type(fault).__name__}: {fault}; hand on every "
            "keyword that the base takes, and leave its attention to the family"
        ) from fault
    if getattr(model, "config", None) is None or model.config.to_dict() != base.config.to_dict():
        raise Failed("the adapted model has not its base's config; leave `config` where it is, unchanged")
    if hasattr(base, "generate") and not hasattr(model, "generate"):
        raise Failed("the adapted model cannot generate, which chatting needs; let a wrapper hand on what the base has")


def check_start_is_the_base(plugin: object, bench: Bench | None = None) -> None:
    """Before the first step it answers as its base."""
    bench = bench_of("method", plugin, bench)
    stage, scene = begun(bench), main_scene(bench)
    base = base_of(bench, scene).model
    found = gap(answers(stage.model, questions(scene)), base_answers(bench, scene))
    if not found <= START:
        raise Failed(
            f"with nothing learnt its logits differ from the base's by {found:.1e}, more than rounding ({START:.0e}); "
            "start what it adds at zero, or take it out of the weights that it is added to"
        )
    batch = stage.rows.collate(stage.rows.train[:3])
    lost, wanted = (float(stage.rows.loss(model.eval(), batch).detach()) for model in (stage.model, base))
    if not abs(lost - wanted) <= START * max(1.0, abs(wanted)):
        raise Failed(
            f"with nothing learnt its loss over a batch of training rows is {lost:.5f} and the base's {wanted:.5f}; "
            "the forward pass must treat rows laid end to end, or padded, as the base does"
        )


def starts_as_base(bench: Bench) -> bool:
    """Whether the answers are those of the base before the first step; where they are not, that is said once."""
    scene = main_scene(bench)
    return gap(answers(begun(bench).model, questions(scene)), base_answers(bench, scene)) <= START


def check_every_tensor_learns(plugin: object, bench: Bench | None = None) -> None:
    """Every trainable tensor gets a gradient within a few steps, moves, and stays finite."""
    bench = bench_of("method", plugin, bench)
    seen = trained(bench).witness
    idle = [name for name, _, _ in seen.trained if not seen.slopes[name] > 0]
    if idle:
        raise Failed(
            f"{shown(idle)} of {len(seen.trained)} trainable tensors had no gradient in {seen.steps} steps; "
            "the forward pass must reach it, or it must not require one"
        )
    still = [name for name, tensor, before in seen.trained if gap(tensor.detach(), before) == 0]
    if still:
        raise Failed(f"{shown(still)} got gradients and did not move in {seen.steps} steps; something puts it back")
    wild = [name for name, tensor, _ in seen.trained if not bool(tensor.isfinite().all())]
    if wild:
        raise Failed(f"{shown(wild)} is not finite after {seen.steps} steps")


def check_base_is_unchanged(plugin: object, bench: Bench | None = None) -> None:
    """What does not train of the base is bit for bit what it was after training: weights and buffers."""
    bench = bench_of("method", plugin, bench)
    seen = trained(bench).witness
    moved = [(name, gap(tensor.detach(), before)) for name, tensor, before in seen.frozen]
    moved = [(name, by) for name, by in moved if by]
    if moved:
        name, by = max(moved, key=lambda one: one[1])
        raise Failed(
            f"{len(moved)} of {len(seen.frozen)} frozen tensors of the base changed in training, '{name}' by {by:.1e}; "
            "neither the adapter nor loading it again accounts for that"
        )


def check_training_changes_the_answers(plugin: object, bench: Bench | None = None) -> None:
    """Training changes the answers that it gives in evaluation."""
    bench = bench_of("method", plugin, bench)
    before = answers(begun(bench).model, questions(main_scene(bench)))
    found = spread(trained_answers(bench) - before) / spread(before)
    if not found >= CHANGE:
        raise Failed(
            f"its tensors moved in training, and its answers in evaluation mode only by {found:.1e} of their size; "
            "the adapter must act in evaluation as it does in training"
        )


def check_training_lowers_the_loss(plugin: object, bench: Bench | None = None) -> None:
    """A few steps at its suggested learning rate lower the loss of the rows that it trains on."""
    bench = bench_of("method", plugin, bench)
    rate = suggested(plugin)
    keys: dict[str, Any] = {"lr": rate, "batch_size": 64, "packing": packing_of(bench), "weight_decay": 0.0}
    loop = loop_of(staged(plugin, main_scene(bench), **keys))
    data, model = loop.staged.rows, loop.staged.model
    batch = data.collate(data.train)
    before = float(data.loss(model.eval(), batch).detach()) / batch.weight
    for step in range(1, 5):
        stepped(loop, step)
    after = float(data.loss(model.eval(), batch).detach()) / batch.weight
    if not after < before:
        raise Failed(
            f"four steps at the learning rate {rate:g} over all rows took their loss from {before:.6f} to {after:.6f}; "
            "its gradients do not lead downhill, or its suggested_lr is too high"
        )


def suggested(plugin: object) -> float:
    """The learning rate that the method suggests; Failed when it is none."""
    from ftcore.discovery import declared_datum

    rate = declared_datum(plugin, "suggested_lr")
    if not isinstance(rate, float) or not 0 < rate < 1:
        raise Failed(f"its suggested_lr is {rate!r}; declare a number between 0 and 1")
    return rate


def check_reports_its_loss(plugin: object, bench: Bench | None = None) -> None:
    """Its train_step answers with the mean loss over what the step's rows supervise."""
    bench = bench_of("method", plugin, bench)
    loop = loop_of(staged(plugin, main_scene(bench), packing=packing_of(bench), accumulate=2, batch_size=2))
    for step in (1, 2):
        wanted = _mean_loss(loop, step)
        found = stepped(loop, step)
        if not isinstance(found, float) or not abs(found - wanted) <= 1e-3 * max(1.0, abs(wanted)):
            raise Failed(
                f"train_step answered {found!r} in step {step} where the mean loss is {wanted:.5f}; "
                "return what the core's own step returns, or the same mean"
            )


def check_makes_one_step(plugin: object, bench: Bench | None = None) -> None:
    """Its train_step makes one step of the optimizer, and no more."""
    bench = bench_of("method", plugin, bench)
    loop = loop_of(staged(plugin, main_scene(bench), packing=packing_of(bench)))
    made: list[int] = []
    loop.optimizer.register_step_post_hook(lambda *told: made.append(1))
    for step in (1, 2):
        stepped(loop, step)
    if len(made) != 2:
        raise Failed(
            f"in two calls of train_step the optimizer made {len(made)} steps; the learning rate, the log and what is "
            "resumed count one for each call"
        )


def _mean_loss(loop: Any, step: int) -> float:
    stage, batches = loop.staged, batches_of(loop, step)
    stage.model.train()
    with seeded(stage.recipe.settings.seed, "step", step, 0):
        total = sum(float(stage.rows.loss(stage.model, batch).detach()) for batch in batches)
    return total / sum(batch.weight for batch in batches)
