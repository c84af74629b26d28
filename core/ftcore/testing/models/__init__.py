"""What a model family promises: the checkpoint's own weights, under roles that name them."""

from __future__ import annotations

from ftcore.declaring import declared
from ftcore.discovery import declared_datum
from ftcore.testing.kit import Check
from ftcore.testing.models import files, loading, planning, roles, strangers, tokens, weights, working


def _claims(plugin: object) -> bool:
    """Whether there are types that the family does not load."""
    return bool(declared_datum(plugin, "model_types")) or not declared_datum(plugin, "tried_on")


def _draws(plugin: object) -> bool:
    """Whether the family offers random weights."""
    return any(option.name == "weights" and "random" in option.choices for option in declared(type(plugin)))


LOADED = ("check_loads_each_head",)
PARTS = ("check_roles_are_complete",)
UNTOUCHED = ("check_transformers_stays_as_it_was",)
PRECISE = ("check_precision_is_as_asked",)
OWN = ("check_weights_are_the_checkpoints_own",)
ANSWERS = ("check_answers_as_the_original",)
PLANS = ("check_plan_needs_no_weights",)
NUMBERS = ("check_vocabulary_is_the_models", "check_positions_are_the_models")
RUNS = ("check_answers_can_stop", "check_checkpoint_is_left_alone", "check_loads_in_a_fresh_process")

EVERY_MODEL: tuple[Check, ...] = (
    Check(loading.check_loads_its_checkpoint),
    Check(loading.check_keeps_no_state, needs=("check_loads_its_checkpoint",)),
    Check(loading.check_loads_each_head, needs=("check_keeps_no_state",)),
    Check(loading.check_transformers_stays_as_it_was, needs=LOADED),
    Check(loading.check_precision_is_as_asked, needs=UNTOUCHED),
    Check(weights.check_tied_weights_stay_tied, needs=UNTOUCHED),
    Check(
        loading.check_weights_are_the_checkpoints_own,
        needs=("check_precision_is_as_asked", "check_tied_weights_stay_tied"),
    ),
    Check(loading.check_answers_as_the_original, needs=OWN),
    Check(loading.check_loads_in_a_fresh_process, needs=LOADED),
    Check(loading.check_keywords_reach_the_model, needs=PRECISE),
    Check(roles.check_roles_name_modules, needs=LOADED),
    Check(roles.check_roles_are_complete, needs=("check_roles_name_modules",)),
    Check(roles.check_ends_are_named, needs=PARTS),
    Check(roles.check_attention_roles_mean_what_they_say, needs=PARTS),
    Check(roles.check_mlp_roles_mean_what_they_say, needs=PARTS),
    Check(tokens.check_vocabulary_is_the_models, needs=LOADED),
    Check(tokens.check_positions_are_the_models, needs=LOADED),
    Check(tokens.check_tokenizer_is_the_checkpoints, needs=LOADED),
    Check(tokens.check_answers_can_stop, needs=("check_tokenizer_is_the_checkpoints",)),
    Check(tokens.check_template_leaves_an_exact_mask, needs=("check_answers_can_stop",)),
    Check(tokens.check_starter_stands_in, needs=LOADED),
    Check(planning.check_plan_needs_no_weights, needs=("check_roles_name_modules", *OWN, *NUMBERS)),
    Check(planning.check_plan_needs_no_memory, needs=(*PLANS, "check_loads_in_a_fresh_process")),
    Check(weights.check_saved_and_loaded_it_is_the_same, needs=(*OWN, "check_answers_can_stop")),
    Check(weights.check_random_weights_follow_the_seed, needs=LOADED, concerns=_draws),
    Check(files.check_loads_all_or_nothing, needs=LOADED),
    Check(files.check_shards_load, needs=LOADED),
    Check(files.check_other_types_are_refused, needs=LOADED, concerns=_claims),
    Check(files.check_incomplete_folders_are_refused, needs=("check_loads_all_or_nothing",)),
    Check(files.check_loads_nothing_else, needs=("check_loads_all_or_nothing", *ANSWERS)),
    Check(files.check_checkpoint_is_left_alone, needs=LOADED),
    Check(strangers.check_no_code_of_a_checkpoint_runs, needs=LOADED),
    Check(strangers.check_asks_nothing_of_the_network, needs=LOADED),
    Check(working.check_rows_do_not_see_each_other, needs=ANSWERS),
    Check(working.check_activations_can_be_recomputed, needs=(*PARTS, *NUMBERS, "check_rows_do_not_see_each_other")),
    Check(working.check_generates_alike_with_a_cache, needs=ANSWERS),
    Check(working.check_a_run_trains_and_resumes, needs=("check_activations_can_be_recomputed", *RUNS)),
    Check(working.check_an_attached_run_answers_as_trained, needs=("check_a_run_trains_and_resumes",)),
    Check(working.check_merges_into_a_plain_checkpoint, needs=("check_an_attached_run_answers_as_trained",)),
    Check(working.check_merges_by_blocks, needs=("check_merges_into_a_plain_checkpoint", *PLANS)),
)
