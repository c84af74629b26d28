"""What a method promises: it trains its own tensors only, and travels whole through save, resume and merge."""

from __future__ import annotations

from functools import partial

from ftcore.testing.kit import Check
from ftcore.testing.methods.company import (
    check_merges_beside_another,
    check_refuses_company_if_it_says_so,
    check_trains_beside_another,
    check_works_on_a_wrapped_model,
    stands_alone,
)
from ftcore.testing.methods.learning import (
    check_base_is_unchanged,
    check_every_tensor_learns,
    check_leaves_the_rows_alone,
    check_makes_one_step,
    check_not_everything_trains,
    check_reports_its_loss,
    check_something_trains,
    check_start_is_the_base,
    check_the_model_is_used_as_before,
    check_training_changes_the_answers,
    check_training_lowers_the_loss,
)
from ftcore.testing.methods.merging import (
    check_merged_by_blocks_it_is_the_same,
    check_merged_it_answers_the_same,
    check_merged_it_is_the_base_again,
    check_merging_can_be_repeated,
    check_the_merged_checkpoint_is_plain,
    check_tied_weights_stay_tied,
)
from ftcore.testing.methods.places import (
    check_a_plan_tells_what_trains,
    check_adapts_what_it_is_told,
    check_bf16_answers_as_float32,
    check_bf16_merges,
    check_bf16_trains_in_float32,
    check_every_head_it_claims,
    check_fused_projections,
    check_it_generates_what_it_answers,
    check_padding_and_packing_are_the_same,
    check_rows_in_a_batch_do_not_meet,
    check_the_cache_changes_nothing,
    check_training_and_evaluation_agree,
    check_unknown_parts_are_refused,
)
from ftcore.testing.methods.repeating import (
    check_a_fresh_process_trains_the_same,
    check_checkpointing_changes_nothing,
    check_evaluation_is_deterministic,
    check_keeps_no_state,
    check_micro_batches_change_nothing,
    check_the_same_seed_gives_the_same,
    check_two_processes_train_as_one,
)
from ftcore.testing.methods.storing import (
    check_a_foreign_adapter_is_refused,
    check_another_process_loads_the_same,
    check_loaded_again_it_answers_the_same,
    check_resumed_it_ends_the_same,
    check_saving_changes_nothing,
    check_the_adapter_holds_only_what_was_learnt,
)
from ftcore.testing.methods.work import decodes, has_hook

merges = partial(has_hook, "merge")


def _company(plugin: object) -> bool:
    return not stands_alone(plugin)


def _merging_company(plugin: object) -> bool:
    return merges(plugin) and not stands_alone(plugin)


def _merging_decoder(plugin: object) -> bool:
    return merges(plugin) and decodes(plugin)


# Each needs those whose failing would make it fail too, so that one defect is told once.
_LOADED, _ALIKE, _MERGED = (
    "check_loaded_again_it_answers_the_same", "check_keeps_no_state", "check_merged_it_answers_the_same",
)  # fmt: skip
EVERY_METHOD: tuple[Check, ...] = (
    Check(check_something_trains, ("check_options_survive", "check_hooks_exist")),
    Check(check_leaves_the_rows_alone, ("check_something_trains",)),
    Check(check_not_everything_trains, ("check_something_trains",)),
    Check(check_adapts_what_it_is_told, ("check_unknown_parts_are_refused",)),
    Check(check_unknown_parts_are_refused, ("check_something_trains",)),
    Check(check_a_plan_tells_what_trains, ("check_something_trains",)),
    Check(check_the_model_is_used_as_before, ("check_something_trains",)),
    Check(check_start_is_the_base, ("check_the_model_is_used_as_before",)),
    Check(check_every_tensor_learns, ("check_the_model_is_used_as_before",)),
    Check(check_base_is_unchanged, ("check_every_tensor_learns",)),
    Check(check_evaluation_is_deterministic, ("check_every_tensor_learns",)),
    Check(check_training_changes_the_answers, ("check_evaluation_is_deterministic",)),
    Check(check_training_lowers_the_loss, ("check_training_changes_the_answers",)),
    Check(check_makes_one_step, ("check_every_tensor_learns",), partial(has_hook, "train_step")),
    Check(check_reports_its_loss, ("check_every_tensor_learns",), partial(has_hook, "train_step")),
    Check(check_rows_in_a_batch_do_not_meet, ("check_evaluation_is_deterministic",)),
    Check(check_padding_and_packing_are_the_same, ("check_rows_in_a_batch_do_not_meet",), decodes),
    Check(
        check_training_and_evaluation_agree,
        ("check_rows_in_a_batch_do_not_meet", "check_training_changes_the_answers"),
    ),
    Check(check_it_generates_what_it_answers, ("check_rows_in_a_batch_do_not_meet",), decodes),
    Check(check_the_cache_changes_nothing, ("check_it_generates_what_it_answers",), decodes),
    Check(check_saving_changes_nothing, ("check_evaluation_is_deterministic",)),
    Check(
        check_loaded_again_it_answers_the_same,
        ("check_training_changes_the_answers", "check_saving_changes_nothing", "check_base_is_unchanged"),
    ),
    Check(check_the_adapter_holds_only_what_was_learnt, (_LOADED,)),
    Check(check_a_foreign_adapter_is_refused, ("check_the_adapter_holds_only_what_was_learnt",)),
    Check(check_merged_it_is_the_base_again, (_LOADED, "check_start_is_the_base"), merges),
    Check(check_merged_it_answers_the_same, ("check_merged_it_is_the_base_again",), merges),
    Check(check_the_merged_checkpoint_is_plain, (_MERGED,), merges),
    Check(check_merged_by_blocks_it_is_the_same, ("check_the_merged_checkpoint_is_plain",), merges),
    Check(check_merging_can_be_repeated, ("check_the_merged_checkpoint_is_plain", _ALIKE), merges),
    Check(check_tied_weights_stay_tied, (_MERGED,), _merging_decoder),
    Check(
        check_the_same_seed_gives_the_same,
        (_LOADED, "check_merged_it_is_the_base_again", "check_runs_in_a_fresh_process"),
    ),
    Check(check_keeps_no_state, ("check_the_same_seed_gives_the_same",)),
    Check(check_a_fresh_process_trains_the_same, (_ALIKE,)),
    Check(check_another_process_loads_the_same, (_ALIKE, _MERGED)),
    Check(check_resumed_it_ends_the_same, (_ALIKE,)),
    Check(check_micro_batches_change_nothing, (_ALIKE, "check_rows_in_a_batch_do_not_meet", "check_reports_its_loss")),
    Check(check_checkpointing_changes_nothing, (_ALIKE,)),
    Check(check_two_processes_train_as_one, ("check_micro_batches_change_nothing",)),
    Check(check_bf16_trains_in_float32, ("check_every_tensor_learns",)),
    Check(check_bf16_answers_as_float32, ("check_bf16_trains_in_float32", _LOADED)),
    Check(check_bf16_merges, ("check_bf16_answers_as_float32", _MERGED), merges),
    Check(check_every_head_it_claims, (_ALIKE, _MERGED)),
    Check(check_fused_projections, (_ALIKE, _MERGED), decodes),
    Check(check_refuses_company_if_it_says_so, ("check_something_trains",), stands_alone),
    Check(check_trains_beside_another, (_ALIKE, "check_not_everything_trains"), _company),
    Check(check_merges_beside_another, ("check_trains_beside_another", _MERGED), _merging_company),
    Check(check_works_on_a_wrapped_model, ("check_trains_beside_another", "check_merges_beside_another"), _company),
)
