//! Fresh decisions: what they ask of the leader, and what they refuse when they cannot know.
#![allow(clippy::unwrap_used)]

use envforge_domain::commit::{Component, Position};
use envforge_domain::ids::OrgId;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::given::*;
use crate::hot::HotConfig;
use crate::hot::tests::{Act, ScriptedLog, quick};

async fn authorizer(script: Vec<Act>, config: HotConfig) -> (Arc<ScriptedLog>, Authorizer) {
    let log = ScriptedLog::new(Story::new().history, script);
    let shared: SharedLog = Arc::<ScriptedLog>::clone(&log);
    let hot = Hot::start_with(Arc::clone(&shared), config, CancellationToken::new());
    hot.caught_up().await.unwrap();
    (log, Authorizer::new(shared, hot, Arc::default()))
}

impl Authorizer {
    async fn ask(&self, who: u128, of: OrgId) -> Result<Permit, AuthorizeError> {
        let (actor, resource) = (Actor::User(user(who)), Resource::Organization(of));
        self.permit(actor, Some(session(who)), Action::OrganizationRead, resource, Surface::Api, NOW).await
    }

    fn ask_memory(&self, who: u128) -> Result<Permit, AuthorizeError> {
        let (actor, resource) = (Actor::User(user(who)), Resource::Organization(org(1)));
        self.permit_from_memory(actor, Some(session(who)), Action::OrganizationRead, resource, Surface::Api, NOW)
    }
}

#[tokio::test]
async fn a_person_is_judged_by_the_organizations_and_their_own_stream() {
    let (log, authorizer) = authorizer(vec![], quick()).await;
    let permit = authorizer.ask(OWNER, org(1)).await.unwrap();
    assert_eq!(permit.position(), authorizer.hot().position());
    let streams = [StreamId::organization(org(1)), StreamId::user(org(1), user(OWNER))];
    assert_eq!(log.asked(), streams);
    let stood = streams.map(|stream| Standing { stream, last: Position::START });
    assert_eq!(permit.rests_on(), stood);
    assert!(authorizer.ask_memory(OWNER).unwrap().rests_on().is_empty());
}

#[tokio::test]
async fn a_visitor_is_judged_by_the_link_its_workspace_and_its_issuer() {
    let (log, authorizer) = authorizer(vec![], quick()).await;
    let actor = Actor::LinkVisitor { link: link(1), session: Some(session(1)) };
    let resource = Resource::Link { org: org(1), project: project(1), workspace: workspace(1), link: link(1) };
    let asked = authorizer.permit(actor, None, Action::LinkOpenSession, resource, Surface::Gateway, NOW).await;
    asked.unwrap();
    let mut streams = log.asked();
    streams.sort();
    let mut expected = vec![
        StreamId::organization(org(1)),
        StreamId::dev_link(org(1), link(1)),
        StreamId::user(org(1), user(DEVELOPER)),
        StreamId::workspace(org(1), workspace(1)),
    ];
    expected.sort();
    assert_eq!(streams, expected);
}

#[tokio::test(start_paused = true)]
async fn a_view_that_does_not_get_there_in_time_refuses() {
    let (log, authorizer) = authorizer(vec![], quick()).await;
    let ahead = authorizer.hot().position().next();
    *log.leader.lock() = Ok(ahead);
    let refused = authorizer.ask(OWNER, org(1)).await.unwrap_err();
    assert!(matches!(refused, AuthorizeError::Stale(Stale::Behind { wanted, .. }) if wanted == ahead), "{refused}");
}

#[tokio::test]
async fn a_leader_out_of_reach_refuses() {
    let (log, authorizer) = authorizer(vec![], quick()).await;
    *log.leader.lock() = Err(LogError::Unavailable("gone".to_owned()));
    assert!(matches!(authorizer.ask(OWNER, org(1)).await, Err(AuthorizeError::Log(_))));
}

#[tokio::test]
async fn memory_that_is_too_old_refuses_where_the_leaders_word_would_do() {
    let config = HotConfig { staleness_max: std::time::Duration::ZERO, ..quick() };
    let (_log, authorizer) = authorizer(vec![], config).await;
    let refused = authorizer.ask_memory(OWNER).unwrap_err();
    assert!(matches!(refused, AuthorizeError::Stale(Stale::Silent { .. })), "{refused}");
    authorizer.ask(OWNER, org(1)).await.unwrap();
}

#[tokio::test]
async fn a_failed_log_refuses_everybody_even_envforge_itself() {
    let stop = CancellationToken::new();
    let error = LogError::Undecodable { position: Position::new(1), reason: "new".to_owned() };
    let log = ScriptedLog::new(Story::new().history, [Act::Refuse(error)]);
    let shared: SharedLog = log;
    let hot = Hot::start_with(Arc::clone(&shared), quick(), stop);
    hot.caught_up().await.unwrap_err();
    let authorizer = Authorizer::new(shared, hot, Arc::default());
    assert!(matches!(authorizer.ask_memory(OWNER), Err(AuthorizeError::Stale(Stale::Stopped { .. }))));
    assert!(matches!(authorizer.ask(OWNER, org(1)).await, Err(AuthorizeError::Stale(Stale::Stopped { .. }))));
    let (actor, resource) = (Actor::System(Component::Timer), Resource::Organization(org(1)));
    let asked = authorizer.permit(actor, None, Action::DenialRecord, resource, Surface::Api, NOW).await;
    assert!(matches!(asked, Err(AuthorizeError::Stale(Stale::Stopped { .. }))));
}

#[tokio::test]
async fn denials_are_held_for_organizations_that_exist_only() {
    let (_log, authorizer) = authorizer(vec![], quick()).await;
    for number in 1..100 {
        let refused = authorizer.ask(77, org(number)).await.unwrap_err();
        assert!(matches!(refused, AuthorizeError::Denied(Denial::NotAMember)));
    }
    let held = authorizer.denials().drain();
    assert_eq!(held.len(), 1);
    assert_eq!((held[0].0, held[0].1[0].count, held[0].1[0].code.as_str()), (org(1), 1, "not_a_member"));
}
