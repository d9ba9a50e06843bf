//! The operating system's keyring, as the command line uses it: found within a second or not at all, and without asking anybody
//! for anything.
//!
//! On Linux it is the Secret Service of the session bus: GNOME Keyring, KWallet, KeePassXC. Elsewhere there is none yet. One item an
//! API and folder of settings. Not here: what an item says, and what happens where there is no keyring (`credentials`).

use std::path::Path;
use std::time::Duration;

/// Whose item it is. Attributes of items are not secret: other programs of the same person can list them.
#[derive(Clone, Copy)]
pub(crate) struct Item<'a> {
    pub(crate) api: &'a str,
    /// People, and tests, keep several folders of settings side by side.
    pub(crate) folder: &'a Path,
}

/// Why there is no keyring to use now: what follows "the keyring of this machine cannot be used: ".
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct NoKeyring(String);

impl NoKeyring {
    pub(crate) fn not_asked(why: &str) -> Self {
        Self(format!("it is not asked: {why}"))
    }
}

/// Commands are not kept waiting for a desktop that does not answer.
const FIND_WAIT_MAX: Duration = Duration::from_secs(1);
/// It was there a moment ago. Whatever it asks somebody meanwhile, we do not wait for them.
const ANSWER_WAIT_MAX: Duration = Duration::from_secs(5);

async fn within<T>(wait: Duration, work: impl Future<Output = Result<T, NoKeyring>>) -> Result<T, NoKeyring> {
    let late = || NoKeyring(format!("it did not answer within {} s", wait.as_secs()));
    tokio::time::timeout(wait, work).await.unwrap_or_else(|_| Err(late()))
}

#[cfg(target_os = "linux")]
mod secret_service {
    //! The calls of the Secret Service API (freedesktop.org, 0.2) that are needed here, and no other.

    use std::collections::HashMap;

    use envforge_domain::secret::Secret;
    use serde::Serialize;
    use serde::de::DeserializeOwned;
    use zbus::{Connection, DynamicType, Error, ObjectPath, OwnedObjectPath, OwnedVariant, Type, Variant};

    use super::{ANSWER_WAIT_MAX, FIND_WAIT_MAX, Item, NoKeyring, within};

    const DESTINATION: &str = "org.freedesktop.secrets";
    const SERVICE: &str = "org.freedesktop.Secret.Service";
    const COLLECTION: &str = "org.freedesktop.Secret.Collection";
    const ITEM: &str = "org.freedesktop.Secret.Item";
    /// Of the service itself.
    const ROOT: &str = "/org/freedesktop/secrets";
    /// What stands where there is no object.
    const NO_OBJECT: &str = "/";
    const APPLICATION: &str = "envforge";
    const CONTENT_TYPE: &str = "application/json";

    /// Session, parameters, value, content type.
    type Wrapped = (OwnedObjectPath, Vec<u8>, Vec<u8>, String);

    /// A keyring that is open.
    pub(crate) struct Keyring {
        bus: Connection,
        session: OwnedObjectPath,
        collection: OwnedObjectPath,
        name: String,
    }

    impl Keyring {
        /// The keyring that new secrets go to, if it is open. A locked one is left alone: opening it would ask for a password in the
        /// middle of whatever command this is.
        pub(crate) async fn find() -> Result<Self, NoKeyring> {
            within(FIND_WAIT_MAX, async {
                let bus = Connection::session().await.map_err(|_| NoKeyring("this session has no bus".to_owned()))?;
                // `plain`: a secret crosses the bus as it is. That is a socket of this user alone, and whoever listens there as this user
                // can ask for the secret itself; the other way that the API knows is a 1,024-bit exchange that nobody signs.
                let (_, session): (OwnedVariant, OwnedObjectPath) =
                    call(&bus, ROOT, SERVICE, "OpenSession", &("plain", Variant::from(""))).await?;
                let collection: OwnedObjectPath = call(&bus, ROOT, SERVICE, "ReadAlias", &"default").await?;
                if collection.as_str() == NO_OBJECT {
                    return Err(NoKeyring("there is none yet".to_owned()));
                }
                if property(&bus, &collection, "Locked").await? {
                    return Err(NoKeyring("it is locked".to_owned()));
                }
                let name = property(&bus, &collection, "Label").await?;
                Ok(Self { bus, session, collection, name })
            })
            .await
        }

        /// What people know it by.
        pub(crate) fn name(&self) -> &str {
            &self.name
        }

        pub(crate) async fn read(&self, item: Item<'_>) -> Result<Option<Secret>, NoKeyring> {
            within(ANSWER_WAIT_MAX, async {
                let Some(found) = self.search(item).await?.into_iter().next() else { return Ok(None) };
                let wrapped: (Wrapped,) = call(&self.bus, &found, ITEM, "GetSecret", &self.session).await?;
                // What is no text is none of ours.
                Ok(String::from_utf8(wrapped.0.2).ok().map(Secret::new))
            })
            .await
        }

        /// Puts a secret in the place of whatever this item was.
        pub(crate) async fn write(&self, item: Item<'_>, label: &str, secret: &Secret) -> Result<(), NoKeyring> {
            within(ANSWER_WAIT_MAX, async {
                let folder = item.folder.to_string_lossy();
                let properties = HashMap::from([
                    ("org.freedesktop.Secret.Item.Label", Variant::from(label)),
                    ("org.freedesktop.Secret.Item.Attributes", Variant::from(attributes(item, &folder))),
                ]);
                let value = secret.expose().as_bytes().to_vec();
                let wrapped: Wrapped = (self.session.clone(), Vec::new(), value, CONTENT_TYPE.to_owned());
                let replace = true;
                let (_, prompt): (OwnedObjectPath, OwnedObjectPath) =
                    call(&self.bus, &self.collection, COLLECTION, "CreateItem", &(properties, wrapped, replace))
                        .await?;
                nobody_is_asked(&prompt)
            })
            .await
        }

        pub(crate) async fn remove(&self, item: Item<'_>) -> Result<(), NoKeyring> {
            within(ANSWER_WAIT_MAX, async {
                for found in self.search(item).await? {
                    let prompt: OwnedObjectPath = call(&self.bus, &found, ITEM, "Delete", &()).await?;
                    nobody_is_asked(&prompt)?;
                }
                Ok(())
            })
            .await
        }

        async fn search(&self, item: Item<'_>) -> Result<Vec<OwnedObjectPath>, NoKeyring> {
            let folder = item.folder.to_string_lossy();
            call(&self.bus, &self.collection, COLLECTION, "SearchItems", &attributes(item, &folder)).await
        }
    }

    fn attributes<'a>(item: Item<'a>, folder: &'a str) -> HashMap<&'static str, &'a str> {
        HashMap::from([("application", APPLICATION), ("api", item.api), ("folder", folder)])
    }

    async fn call<B, R>(bus: &Connection, object: &str, interface: &str, method: &str, body: &B) -> Result<R, NoKeyring>
    where
        B: Serialize + DynamicType,
        R: DeserializeOwned + Type,
    {
        let object = ObjectPath::try_from(object)?;
        let answer = bus.call_method(Some(DESTINATION), object, Some(interface), method, body).await?;
        Ok(answer.body().deserialize()?)
    }

    async fn property<T>(bus: &Connection, collection: &str, name: &str) -> Result<T, NoKeyring>
    where
        T: TryFrom<OwnedVariant>,
        NoKeyring: From<T::Error>,
    {
        let value: OwnedVariant =
            call(bus, collection, "org.freedesktop.DBus.Properties", "Get", &(COLLECTION, name)).await?;
        Ok(T::try_from(value)?)
    }

    /// A prompt is shown to nobody until somebody says so, and we do not.
    fn nobody_is_asked(prompt: &OwnedObjectPath) -> Result<(), NoKeyring> {
        if prompt.as_str() == NO_OBJECT { Ok(()) } else { Err(NoKeyring("it wants to ask somebody first".to_owned())) }
    }

    impl From<Error> for NoKeyring {
        fn from(error: Error) -> Self {
            Self(match error {
                Error::MethodError(name, _, _) if name.as_str() == "org.freedesktop.Secret.Error.IsLocked" => {
                    "it is locked".to_owned()
                }
                Error::FDO(error) if is_nobody(&error) => "no program on this session's bus keeps secrets".to_owned(),
                error => format!("the session's bus did not do it: {error}"),
            })
        }
    }

    fn is_nobody(error: &zbus::fdo::Error) -> bool {
        matches!(error, zbus::fdo::Error::ServiceUnknown(_) | zbus::fdo::Error::NameHasNoOwner(_))
    }
}

#[cfg(target_os = "linux")]
pub(crate) use secret_service::Keyring;

/// Systems whose keyring is not known here.
#[cfg(not(target_os = "linux"))]
mod none {
    use envforge_domain::secret::Secret;

    use super::{Item, NoKeyring};

    /// There is never one.
    pub(crate) enum Keyring {}

    impl Keyring {
        #[expect(clippy::unused_async, reason = "where there is one, it takes a moment")]
        pub(crate) async fn find() -> Result<Self, NoKeyring> {
            Err(NoKeyring("envforge does not know this system's".to_owned()))
        }

        pub(crate) fn name(&self) -> &str {
            match *self {}
        }

        pub(crate) async fn read(&self, _: Item<'_>) -> Result<Option<Secret>, NoKeyring> {
            match *self {}
        }

        pub(crate) async fn write(&self, _: Item<'_>, _: &str, _: &Secret) -> Result<(), NoKeyring> {
            match *self {}
        }

        pub(crate) async fn remove(&self, _: Item<'_>) -> Result<(), NoKeyring> {
            match *self {}
        }
    }
}

#[cfg(not(target_os = "linux"))]
pub(crate) use none::Keyring;
