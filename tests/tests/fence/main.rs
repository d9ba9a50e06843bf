//! Whoever lost a right does nothing more with it: no event of theirs stands behind the one that took the right away, with
//! several nodes at work on one log. Decided by the real authorizer and carried out by the real write side.
#![allow(clippy::unwrap_used, unreachable_pub)]

mod deciding;
mod house;
mod parked;
mod racing;

use house::Site;

/// Both logs, word for word.
macro_rules! on_both_logs {
    ($($module:ident :: $name:ident),* $(,)?) => {
        mod on_sqlite {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                crate::$module::$name(crate::Site::sqlite()).await;
            })*
        }

        mod on_jetstream {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                crate::$module::$name(crate::Site::jetstream()).await;
            })*
        }
    };
}

on_both_logs! {
    deciding::a_decision_on_root_is_refused_when_who_owes_what_to_whom_changes_on_its_way,
    parked::a_command_on_its_way_to_the_log_is_refused_when_its_right_is_taken_meanwhile,
    parked::a_visitors_command_on_its_way_to_the_log_is_refused_when_its_links_issuer_loses_the_right_meanwhile,
    parked::a_command_whose_rights_moved_but_still_stand_is_carried_out_when_asked_again,
    racing::nothing_of_a_person_stands_behind_what_took_their_right_away,
}
