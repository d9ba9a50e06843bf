//! What the SQL read models promise, on both databases by one list.
#![allow(clippy::unwrap_used, unreachable_pub, reason = "tests fail by panicking, and nobody imports them")]

mod audit;
mod directory;
mod harness;
mod history;
mod log;
mod meter;
mod projecting;
mod rebuilding;
mod request_keys;
mod trail;
mod upgrade;
mod world;

/// Every named contract, once on SQLite and once on PostgreSQL.
macro_rules! on_both_databases {
    ($($module:ident: $($contract:ident)+;)+) => {
        mod sqlite {
            $($(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $contract() {
                    crate::$module::$contract(crate::harness::Kind::Sqlite).await;
                }
            )+)+
        }

        mod postgres {
            $($(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $contract() {
                    crate::$module::$contract(crate::harness::Kind::Postgres).await;
                }
            )+)+
        }
    };
}

on_both_databases! {
    projecting:
        replaying_twice_equals_once
        a_crash_between_batches_equals_a_single_pass
        of_two_projectors_one_is_fenced_off_and_rows_are_exact
        a_commit_that_cannot_be_read_halts_after_what_came_before_it
        another_log_in_its_place_halts
        a_waiting_read_returns_once_its_position_is_folded
        a_read_that_would_be_stale_says_how_far_it_got
        a_lost_connection_is_survived_by_the_supervisor
        a_second_supervisor_stands_by
        a_supervisor_on_another_log_says_so_and_goes_on_after_a_rebuild
        over_the_embedded_log
        commands_with_a_request_are_found_by_their_id;
    rebuilding:
        a_rebuild_while_writing_fails_no_read_and_loses_nothing
        a_rebuild_puts_right_what_was_wrong_and_says_so
        a_newer_rebuild_ends_an_older_one
        an_unfinished_rebuild_leaves_the_live_rows_alone
        a_rebuild_on_a_log_that_went_back_takes_what_it_says_now;
    request_keys:
        of_many_who_use_a_key_at_once_one_is_first
        what_changed_nothing_is_remembered_once
        old_keys_are_forgotten_and_what_they_changed_is_not;
    directory:
        organizations_members_and_roles_are_listed
        projects_and_workspaces_are_found_by_id_and_slug
        lists_go_on_at_their_cursor
        a_runtime_is_shown_as_it_stands
        a_link_is_shown_with_its_use
        hosts_are_shown_with_what_they_hold
        another_organization_sees_nothing;
    audit:
        each_visible_event_has_a_row_with_names
        refused_attempts_are_rows
        filters_and_cursors_select_rows
        machines_are_not_shown;
    trail:
        every_filter_finds_in_a_long_log_what_it_means
        a_restart_in_the_middle_of_a_part_changes_nothing
        the_same_log_gives_the_same_rows_on_both_databases
        a_page_ends_where_it_has_looked_into_enough_parts
        a_text_with_a_nul_is_kept_and_a_name_with_one_is_the_same_after_a_restart;
    upgrade:
        an_audit_of_the_former_tables_is_folded_anew_and_whole;
    meter:
        usage_is_split_at_hours_and_attributed
        a_lost_host_is_counted_to_its_last_heartbeat
        a_restart_in_the_middle_of_an_interval_changes_nothing
        what_runs_now_is_estimated_beyond_the_recorded
        what_runs_is_summed_up_before_anybody_heard_of_it_again
        a_sign_of_life_records_what_ran_and_counts_nothing_twice
        usage_is_summed_by_every_group;
    history:
        random_histories_fold_the_same_in_any_batches;
}
