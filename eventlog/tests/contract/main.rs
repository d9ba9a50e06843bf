//! The contract of the event log: one suite, word for word, for both backends, and what each adds of its own.

#![allow(clippy::unwrap_used, unreachable_pub)]
#![allow(clippy::disallowed_methods, reason = "a writing process of the test gets its orders by environment")]

mod append;
mod commits;
mod crash;
mod follow;
mod guards;
mod index;
mod jetstream;
mod jetstream_gateways;
mod journal;
mod read;
mod sameness;
mod site;
mod sqlite;

/// Runs each function on a fresh log of each backend.
macro_rules! contract {
    ($($module:ident :: $name:ident),* $(,)?) => {
        mod on_sqlite {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                crate::$module::$name(crate::site::Site::sqlite()).await;
            })*
        }

        mod on_jetstream {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                crate::$module::$name(crate::site::Site::jetstream()).await;
            })*
        }
    };
}

/// What a cluster does differently: it checks the message id before the expectation, and messages can be on their way.
macro_rules! contract_of_a_cluster {
    ($($module:ident :: $name:ident),* $(,)?) => {
        mod on_jetstream_cluster {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                crate::$module::$name(crate::site::Site::jetstream_cluster()).await;
            })*
        }
    };
}

contract_of_a_cluster! {
    append::a_conflict_names_the_stream_and_stores_nothing,
    append::a_command_repeated_after_a_lost_answer_gets_its_first_position,
    append::a_command_repeated_later_gets_its_first_position_though_the_stream_moved_on,
    append::a_command_repeated_on_the_streams_present_end_gets_its_first_position,
    append::a_command_may_stand_once_in_each_of_several_streams,
    append::a_command_sent_many_times_at_once_is_stored_once,
    append::a_command_used_for_another_request_is_refused,
    append::of_sixteen_writers_on_one_stream_exactly_one_wins_each_round,
    append::a_batch_is_stored_whole_and_side_by_side,
    append::a_batch_with_one_conflict_stores_nothing,
    append::a_batch_repeated_gets_its_first_positions,
    append::of_sixteen_batches_for_one_claim_exactly_one_wins_each_round,
    guards::a_guarded_append_is_stored_where_the_guarded_streams_have_not_moved,
    guards::a_guarded_append_is_refused_where_a_guarded_stream_has_moved,
    guards::a_guarded_append_repeated_gets_its_first_answer_though_the_guarded_stream_moved,
    guards::appends_that_rest_on_the_same_stream_do_not_refuse_each_other,
    guards::of_a_guarded_append_and_a_revocation_at_once_the_append_never_stands_behind,
    read::filters_by_organization_and_kind_hold_over_pages,
    read::the_last_commit_and_the_last_of_several_streams_are_known_at_once,
    follow::a_filtered_follower_gets_its_commits_and_hears_of_the_whole_log,
    follow::a_follower_keeps_up_with_concurrent_writers,
    crash::every_acknowledged_commit_survives_kill_9_of_the_writer,
}

contract! {
    append::a_conflict_names_the_stream_and_stores_nothing,
    append::a_command_repeated_after_a_lost_answer_gets_its_first_position,
    append::a_command_repeated_later_gets_its_first_position_though_the_stream_moved_on,
    append::a_command_repeated_on_the_streams_present_end_gets_its_first_position,
    append::a_command_may_stand_once_in_each_of_several_streams,
    append::a_command_sent_many_times_at_once_is_stored_once,
    append::a_command_used_for_another_request_is_refused,
    append::of_sixteen_writers_on_one_stream_exactly_one_wins_each_round,
    append::a_batch_is_stored_whole_and_side_by_side,
    append::a_batch_with_one_conflict_stores_nothing,
    append::a_batch_repeated_gets_its_first_positions,
    append::of_sixteen_batches_for_one_claim_exactly_one_wins_each_round,
    guards::a_guarded_append_is_stored_where_the_guarded_streams_have_not_moved,
    guards::a_guarded_append_is_refused_where_a_guarded_stream_has_moved,
    guards::a_guarded_append_repeated_gets_its_first_answer_though_the_guarded_stream_moved,
    guards::guards_that_say_nothing_are_malformed,
    guards::appends_that_rest_on_the_same_stream_do_not_refuse_each_other,
    guards::of_a_guarded_append_and_a_revocation_at_once_the_append_never_stands_behind,
    append::what_is_too_large_is_refused_with_its_limit,
    append::what_is_malformed_is_refused,
    append::the_largest_commit_is_stored_and_read_back,
    read::a_stream_comes_back_in_the_order_of_its_appends,
    read::positions_grow_by_one_over_all_streams_and_times_never_go_back,
    read::a_stream_is_read_in_pages,
    read::a_stream_without_commits_is_empty,
    read::the_last_commit_and_the_last_of_several_streams_are_known_at_once,
    read::the_log_is_read_in_pages_to_its_head,
    read::filters_by_organization_and_kind_hold_over_pages,
    read::a_filter_that_nothing_passes_reaches_the_head,
    read::pages_of_large_commits_lose_nothing,
    follow::a_follower_gets_what_is_there_and_then_what_comes,
    follow::a_follower_goes_on_after_its_checkpoint,
    follow::an_idle_follower_hears_at_least_once_a_second_that_nothing_came,
    follow::a_filtered_follower_gets_its_commits_and_hears_of_the_whole_log,
    follow::a_follower_goes_on_after_a_restart_without_loss_or_repetition,
    follow::followers_do_not_disturb_each_other,
    follow::a_follower_keeps_up_with_concurrent_writers,
    sameness::a_checkpoint_of_another_log_is_refused,
    sameness::a_log_that_went_back_is_refused,
    sameness::a_log_that_went_back_and_grew_again_is_refused,
    sameness::a_checkpoint_beyond_the_head_is_refused,
    sameness::the_identity_stays_over_restarts,
    crash::every_acknowledged_commit_survives_kill_9_of_the_writer,
}
