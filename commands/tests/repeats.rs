//! Repeated requests, long after the first: one list for both logs.
#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use envforge_commands::{CommandError, Commands, Context, Done, Repeated, organizations};
use envforge_domain::access::{Action, ActorFacts, Facts, Permit, Principal, Request, Resource, authorize};
use envforge_domain::commit::{Actor, Component, Position, StreamId};
use envforge_domain::ids::{CommandId, OrgId, UserId};
use envforge_domain::organization::OrganizationCommand;
use envforge_domain::time::UnixMillis;
use envforge_eventlog::SharedLog;
use envforge_eventlog::jetstream::JetStreamLog;
use envforge_eventlog::sqlite::SqliteLog;
use envforge_testkit::{NatsServer, TestDir};
use uuid::Uuid;

const NOW: UnixMillis = UnixMillis::new(1_800_000_000_000);
const AGAIN: Option<Repeated> = Some(Repeated { satisfied_at: None });

fn acme() -> OrgId {
    OrgId::from_uuid(Uuid::from_u128(100))
}

fn system(action: Action) -> Permit {
    let facts = Facts { position: Position::START, actor: ActorFacts::System };
    let (actor, surface) = (Actor::System(Component::Setup), action.row().surfaces_of(Principal::System)[0]);
    authorize(&facts, &Request { actor, action, resource: Resource::Organization(acme()), surface, now: NOW }).unwrap()
}

/// Where a log is.
enum Place {
    Sqlite(TestDir),
    JetStream(NatsServer),
}

/// How long the server remembers message ids in `forgetful`: the least that it allows.
const WINDOW: Duration = Duration::from_millis(100);

impl Place {
    async fn open(&self) -> SharedLog {
        match self {
            Self::Sqlite(directory) => {
                let config = envforge_eventlog::sqlite::Config::new(directory.join("log"));
                Arc::new(SqliteLog::open(config).await.unwrap())
            }
            Self::JetStream(server) => {
                let config = envforge_eventlog::jetstream::Config::new(server.url());
                Arc::new(JetStreamLog::open(config).await.unwrap())
            }
        }
    }

    /// A log whose server forgets message ids soon, as it does after two minutes otherwise.
    async fn forgetful(&self) -> SharedLog {
        let log = self.open().await;
        if let Self::JetStream(server) = self {
            let mut stream = TcpStream::connect(("127.0.0.1", server.port())).unwrap();
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            reader.read_line(&mut String::new()).unwrap();
            stream.write_all(b"CONNECT {\"verbose\":false,\"pedantic\":false}\r\nSUB answers 1\r\n").unwrap();
            let mut ask = |verb: &str, body: &str| -> serde_json::Value {
                let (subject, length) = (format!("$JS.API.STREAM.{verb}.ENVFORGE"), body.len());
                write!(stream, "PUB {subject} answers {length}\r\n{body}\r\n").unwrap();
                let mut line = String::new();
                while !line.starts_with("MSG ") {
                    line.clear();
                    reader.read_line(&mut line).unwrap();
                }
                let length: usize = line.trim_end().rsplit(' ').next().unwrap().parse().unwrap();
                let mut payload = vec![0; length + 2];
                reader.read_exact(&mut payload).unwrap();
                serde_json::from_slice(&payload[..length]).unwrap()
            };
            let mut config = ask("INFO", "")["config"].take();
            config["duplicate_window"] = u64::try_from(WINDOW.as_nanos()).unwrap().into();
            let updated = ask("UPDATE", &config.to_string());
            assert_eq!(updated["config"]["duplicate_window"], config["duplicate_window"], "{updated}");
        }
        log
    }
}

/// An organization on a log, with other processes' commands on the same log.
struct House {
    log: SharedLog,
    commands: Commands,
}

impl House {
    async fn on(log: SharedLog) -> Self {
        let commands = Commands::new(Arc::clone(&log));
        let permit = system(Action::OrganizationCreate);
        let (slug, owner) = ("acme".parse().unwrap(), UserId::from_uuid(Uuid::from_u128(1)));
        organizations::create(&commands, &permit, &Context::new(NOW), acme(), slug, "Acme".to_owned(), owner)
            .await
            .unwrap();
        Self { log, commands }
    }

    fn another(&self) -> Commands {
        Commands::new(Arc::clone(&self.log))
    }

    async fn add(&self, commands: &Commands, context: &Context, user: u128) -> Result<Done, CommandError> {
        let command = OrganizationCommand::AddMember { user: UserId::from_uuid(Uuid::from_u128(user)) };
        organizations::change(commands, &system(Action::MemberAdd), context, &command).await
    }

    async fn remove(&self, user: u128) {
        let by = Actor::System(Component::Setup);
        let user = UserId::from_uuid(Uuid::from_u128(user));
        let command = OrganizationCommand::RemoveMember { by, user, now: NOW };
        let permit = system(Action::MemberRemove);
        organizations::change(&self.commands, &permit, &Context::new(NOW), &command).await.unwrap();
    }

    /// More commits than anybody remembers of a stream, over more time than a forgetful server remembers message ids.
    async fn much_later(&self) {
        let started = Instant::now();
        for number in 10.. {
            if number >= 310 && started.elapsed() > 5 * WINDOW {
                return;
            }
            self.add(&self.commands, &Context::new(NOW), number).await.unwrap();
        }
    }

    async fn stream(&self) -> usize {
        self.log.read_stream(&StreamId::organization(acme()), Position::START, 1_000_000).await.unwrap().len()
    }
}

fn keyed(number: u128) -> Context {
    let command = CommandId::from_uuid(Uuid::from_u128(number));
    Context { command, request_digest: Some([7; 32]), ..Context::new(NOW) }
}

async fn three_hundred_commits_later_a_repetition_gets_its_first_answer(place: Place) {
    let house = House::on(place.forgetful().await).await;
    let context = keyed(7);
    let first = house.add(&house.commands, &context, 2).await.unwrap();
    house.remove(2).await;
    house.much_later().await;
    let before = house.stream().await;
    let repeated = Context { repeated: AGAIN, ..context };
    for commands in [house.commands.clone(), house.another()] {
        let again = house.add(&commands, &repeated, 2).await.unwrap();
        assert_eq!((again.position, &again.events, again.duplicate), (first.position, &first.events, true));
        let other = Context { request_digest: Some([8; 32]), ..repeated };
        assert!(matches!(house.add(&commands, &other, 2).await, Err(CommandError::CommandReused)));
    }
    assert_eq!(house.stream().await, before, "nothing was carried out again");
}

/// Nobody said that it is a repetition, and the log knows: what is told is what was stored.
async fn what_was_never_stored_is_never_told(place: Place) {
    let house = House::on(place.open().await).await;
    let context = keyed(8);
    let first = house.add(&house.commands, &context, 2).await.unwrap();
    house.much_later().await;
    let again = house.add(&house.commands, &context, 3).await.unwrap();
    assert_eq!((again.position, again.events, again.duplicate), (first.position, first.events, true));
}

async fn what_changed_nothing_changes_nothing_when_it_is_repeated(place: Place) {
    let house = House::on(place.open().await).await;
    house.add(&house.commands, &Context::new(NOW), 2).await.unwrap();
    let context = keyed(9);
    let satisfied = house.add(&house.commands, &context, 2).await.unwrap();
    assert!(satisfied.events.is_empty() && !satisfied.duplicate);
    house.remove(2).await;
    let before = house.stream().await;
    let repeated = Some(Repeated { satisfied_at: Some(satisfied.position) });
    let again = house.add(&house.another(), &Context { repeated, ..context }, 2).await.unwrap();
    assert_eq!((again.position, again.events.len(), again.duplicate), (satisfied.position, 0, true));
    assert_eq!(house.stream().await, before);
    // One that was refused or broke off is decided, for it had no effect.
    let decided = house.add(&house.commands, &Context { repeated: AGAIN, ..context }, 2).await.unwrap();
    assert_eq!((decided.events.len(), decided.duplicate), (1, false));
}

macro_rules! on_both_logs {
    ($($promise:ident)+) => {
        mod sqlite {
            $(#[tokio::test]
            async fn $promise() {
                super::$promise(super::Place::Sqlite(super::TestDir::new())).await;
            })+
        }

        mod jetstream {
            $(#[tokio::test]
            async fn $promise() {
                super::$promise(super::Place::JetStream(super::NatsServer::start())).await;
            })+
        }
    };
}

on_both_logs! {
    three_hundred_commits_later_a_repetition_gets_its_first_answer
    what_was_never_stored_is_never_told
    what_changed_nothing_changes_nothing_when_it_is_repeated
}
