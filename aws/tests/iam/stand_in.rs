//! A stand-in for HashiCorp's provider: Terraform's plugin protocol 5, gRPC over a unix socket, with a schema like the one that
//! `golden/aws_provider.json` holds.
//!
//! It takes every configuration that Terraform asks it about: which arguments there are, which are required and of what type they are
//! Terraform itself holds against the schema. What the real provider says besides, of values that AWS refuses and of arguments that
//! exclude each other, is not here.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use bytes::{BufMut, Bytes};
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::{HeaderMap, Request, Response};
use serde_json::{Map, Value, json};
use tempfile::TempDir;
use tokio::net::{UnixListener, UnixStream};
use tokio::runtime::Runtime;

/// A provider that is up for as long as this is there.
pub(crate) struct StandIn {
    folder: TempDir,
    asked: Arc<Mutex<BTreeSet<String>>>,
    _runtime: Runtime,
}

impl StandIn {
    pub(crate) fn start(schema: &Value) -> Self {
        let (folder, asked) = (tempfile::tempdir().unwrap(), Arc::<Mutex<BTreeSet<String>>>::default());
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (path, schema, answered) = (folder.path().join("provider"), schemas(schema), Arc::clone(&asked));
        let listener = runtime.block_on(async { UnixListener::bind(path) }).unwrap();
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, schema.clone(), Arc::clone(&answered)));
            }
        });
        Self { folder, asked, _runtime: runtime }
    }

    /// What `TF_REATTACH_PROVIDERS` says for Terraform to come here, as to any provider under test.
    pub(crate) fn reattach(&self) -> String {
        let socket = json!({ "Network": "unix", "String": self.folder.path().join("provider") });
        let plugin = json!({
            "Protocol": "grpc", "ProtocolVersion": 5, "Pid": std::process::id(), "Test": true, "Addr": socket,
        });
        json!({ "registry.terraform.io/hashicorp/aws": plugin }).to_string()
    }

    /// The types of whose resources and data sources it was asked whether they are right, since it was asked this.
    pub(crate) fn asked(&self) -> BTreeSet<String> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }
}

async fn serve(stream: UnixStream, schema: Bytes, asked: Arc<Mutex<BTreeSet<String>>>) -> Result<(), h2::Error> {
    let mut connection = h2::server::handshake(stream).await?;
    while let Some(call) = connection.accept().await {
        let (request, respond) = call?;
        tokio::spawn(answer(request, respond, schema.clone(), Arc::clone(&asked)));
    }
    Ok(())
}

async fn answer(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    schema: Bytes,
    asked: Arc<Mutex<BTreeSet<String>>>,
) -> Result<(), h2::Error> {
    let head = Response::builder().header("content-type", "application/grpc");
    let message = match request.uri().path() {
        "/tfplugin5.Provider/GetSchema" => schema,
        "/tfplugin5.Provider/PrepareProviderConfig" => Bytes::new(),
        "/tfplugin5.Provider/ValidateResourceTypeConfig" | "/tfplugin5.Provider/ValidateDataSourceConfig" => {
            let of = type_name(&received(request.into_body()).await?).ok_or(Reason::PROTOCOL_ERROR)?;
            asked.lock().unwrap().insert(of);
            Bytes::new()
        }
        // Among them what only plugins have that Terraform starts: the broker and their output.
        _ => {
            let unimplemented = head.header("grpc-status", "12").body(()).unwrap();
            return respond.send_response(unimplemented, true).map(drop);
        }
    };
    let mut body = respond.send_response(head.body(()).unwrap(), false)?;
    // Not compressed, and how long it is.
    let mut frame = vec![0];
    frame.put_u32(u32::try_from(message.len()).unwrap());
    frame.put(message);
    body.send_data(frame.into(), false)?;
    body.send_trailers(HeaderMap::from_iter([("grpc-status".parse().unwrap(), "0".parse().unwrap())]))
}

async fn received(mut body: RecvStream) -> Result<Vec<u8>, h2::Error> {
    let mut received = Vec::new();
    while let Some(part) = body.data().await {
        let part = part?;
        body.flow_control().release_capacity(part.len())?;
        received.extend(part);
    }
    Ok(received)
}

/// The first field of what Terraform asks about one resource or data source, behind the five bytes of gRPC.
fn type_name(received: &[u8]) -> Option<String> {
    let [0x0a, length, rest @ ..] = received.get(5..)? else { return None };
    String::from_utf8(rest.get(..usize::from(*length))?.to_vec()).ok()
}

/// A message of protocol buffers, with what is needed here of them: fields of bytes and of numbers below 128, numbered below 16.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn put(&mut self, field: u8, value: impl AsRef<[u8]>) {
        let (value, mut length) = (value.as_ref(), value.as_ref().len());
        self.0.push(field << 3 | 2);
        while length > 0x7f {
            self.0.push((length & 0x7f) as u8 | 0x80);
            length >>= 7;
        }
        self.0.push(length as u8);
        self.0.extend(value);
    }

    fn put_number(&mut self, field: u8, value: u8) {
        assert!(value < 128);
        self.0.extend([field << 3, value]);
    }
}

impl AsRef<[u8]> for Message {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// Of an object, or of nothing.
pub(crate) fn members(of: &Value) -> impl Iterator<Item = (&String, &Value)> {
    of.as_object().into_iter().flat_map(Map::iter)
}

/// The answer to `GetSchema`. The provider's own configuration has no arguments.
fn schemas(all: &Value) -> Bytes {
    let mut answer = Message::default();
    answer.put(1, schema(&Value::Null));
    for (field, kind) in [(2, "resource_schemas"), (3, "data_source_schemas")] {
        for (name, of) in members(&all[kind]) {
            let mut entry = Message::default();
            entry.put(1, name);
            entry.put(2, schema(&of["block"]));
            answer.put(field, entry);
        }
    }
    answer.0.into()
}

fn schema(of: &Value) -> Message {
    let mut schema = Message::default();
    schema.put(2, block(of));
    schema
}

fn block(of: &Value) -> Message {
    let mut made = Message::default();
    for (name, attribute) in members(&of["attributes"]) {
        let mut shown = Message::default();
        shown.put(1, name);
        shown.put(2, attribute["type"].to_string());
        for (field, flag) in [(4, "required"), (5, "optional"), (6, "computed")] {
            shown.put_number(field, u8::from(attribute[flag] == true));
        }
        made.put(2, shown);
    }
    for (name, nested) in members(&of["block_types"]) {
        let mut shown = Message::default();
        shown.put(1, name);
        shown.put(2, block(&nested["block"]));
        let modes = ["single", "list", "set", "map"];
        let mode = modes.iter().position(|mode| nested["nesting_mode"] == *mode).unwrap();
        shown.put_number(3, mode as u8 + 1);
        for (field, limit) in [(4, "min_items"), (5, "max_items")] {
            shown.put_number(field, nested[limit].as_u64().unwrap_or(0) as u8);
        }
        made.put(3, shown);
    }
    made
}
