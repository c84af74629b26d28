"""What a task promises: labels exactly where they belong, and no row lost or changed by its company."""

from __future__ import annotations

from ftcore.discovery import declared_datum
from ftcore.testing.kit import Check
from ftcore.testing.tasks import answers, company, constancy, files, labels, measures
from ftcore.testing.tasks import loss as losses
from ftcore.testing.tasks.stage import TEXT_HEADS, TOKEN_HEADS


def _causal(task: object) -> bool:
    return bool(declared_datum(task, "head") == "causal-lm") and not declared_datum(task, "compares")


def _says_texts(task: object) -> bool:
    return declared_datum(task, "head") in TEXT_HEADS and not declared_datum(task, "compares")


def _chooses_tokens(task: object) -> bool:
    return declared_datum(task, "head") in TOKEN_HEADS and not declared_datum(task, "compares")


READ = "check_examples_are_read"
SAME = "check_rows_are_the_same_every_time"
SUMS = "check_loss_is_a_sum_of_cross_entropies"
WEIGHED = "check_a_token_weighs_the_same_in_company"
ACCOUNTED = "check_every_row_is_accounted_for"
APART = "check_held_out_rows_are_not_trained_on"
HOSTILE = "check_hostile_rows_are_refused_by_line"
ANSWERS = "check_answers_are_learned_and_nothing_else"
STOP = "check_stop_token_is_taught"
PADDING = "check_padding_is_not_learned"
COSTS = "check_a_row_costs_what_the_model_makes_of_it"
EVALUATION = "check_evaluation_needs_no_training_rows"
COUNTS = "check_counts_are_true"

EVERY_TASK: tuple[Check, ...] = (
    Check(labels.check_examples_are_read),
    Check(constancy.check_keeps_no_state, needs=(READ,)),
    Check(constancy.check_rows_are_the_same_every_time, needs=("check_keeps_no_state",)),
    Check(constancy.check_rows_know_themselves, needs=(SAME,)),
    Check(constancy.check_tokenizer_and_model_are_left_alone, needs=(READ,)),
    Check(files.check_every_row_is_accounted_for, needs=(SAME,)),
    Check(constancy.check_held_out_rows_are_not_trained_on, needs=(ACCOUNTED,)),
    Check(constancy.check_held_out_rows_are_drawn_by_the_seed, needs=(APART,)),
    Check(losses.check_loss_is_a_sum_of_cross_entropies, needs=(SAME,), concerns=_chooses_tokens),
    Check(losses.check_loss_is_computed_in_float32, needs=(SUMS,), concerns=_chooses_tokens),
    Check(losses.check_loss_takes_the_model_as_it_is, needs=(SAME, SUMS)),
    Check(labels.check_each_target_is_the_next_token, needs=(SUMS,), concerns=_says_texts),
    Check(
        labels.check_answers_are_learned_and_nothing_else,
        needs=("check_each_target_is_the_next_token", APART),
        concerns=_says_texts,
    ),
    Check(labels.check_stop_token_is_taught, needs=(ANSWERS,), concerns=_says_texts),
    Check(labels.check_a_row_begins_once, needs=(SAME,), concerns=_says_texts),
    Check(company.check_a_token_weighs_the_same_in_company, needs=(SUMS,), concerns=_chooses_tokens),
    Check(company.check_padding_is_not_learned, needs=(WEIGHED,), concerns=_chooses_tokens),
    Check(company.check_no_row_teaches_its_neighbour, needs=(PADDING, APART), concerns=_chooses_tokens),
    Check(company.check_a_row_costs_what_the_model_makes_of_it, needs=(SUMS,), concerns=_causal),
    Check(
        company.check_packing_changes_no_loss,
        needs=(APART, "check_no_row_teaches_its_neighbour", "check_padding_changes_no_loss"),
    ),
    Check(company.check_padding_changes_no_loss, needs=(SAME, PADDING, COSTS)),
    Check(losses.check_a_batch_without_targets_costs_nothing, needs=("check_padding_changes_no_loss",)),
    Check(company.check_counts_are_true, needs=(SAME, SUMS)),
    Check(files.check_no_row_is_too_long, needs=(SAME,)),
    Check(files.check_truncation_is_told, needs=("check_no_row_is_too_long", COUNTS, ACCOUNTED)),
    Check(files.check_hostile_rows_are_refused_by_line, needs=("check_truncation_is_told", APART)),
    Check(files.check_hostile_files_are_refused_by_name, needs=(HOSTILE,)),
    Check(files.check_held_out_rows_are_read_as_strictly, needs=(HOSTILE, EVALUATION)),
    Check(files.check_bad_rows_can_be_left_out, needs=("check_held_out_rows_are_read_as_strictly",)),
    Check(files.check_text_reaches_the_model_as_written, needs=(HOSTILE,), concerns=_says_texts),
    Check(files.check_special_tokens_in_text_stay_text, needs=(HOSTILE,)),
    Check(constancy.check_rows_know_their_place, needs=("check_bad_rows_can_be_left_out", APART)),
    Check(measures.check_metrics_are_right, needs=(APART, SUMS)),
    Check(measures.check_sample_shows_what_is_learned, needs=(ANSWERS, STOP), concerns=_says_texts),
    Check(measures.check_probes_ask_as_rows_do, needs=(ANSWERS, STOP)),
    Check(measures.check_plan_needs_no_weights, needs=(SAME,)),
    Check(measures.check_evaluation_needs_no_training_rows, needs=(SAME,)),
    Check(answers.check_answers_are_their_rows_own, needs=("check_padding_changes_no_loss",)),
    Check(answers.check_answers_are_told, needs=("check_answers_are_their_rows_own",)),
    Check(answers.check_rows_are_answered_as_they_are_evaluated, needs=("check_answers_are_told", EVALUATION)),
    Check(
        measures.check_a_run_trains_and_is_evaluated,
        needs=(EVALUATION, "check_metrics_are_right", COUNTS, STOP),
    ),
)
