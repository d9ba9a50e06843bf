//! Services that ran, as a text in a column: JSON with what the meter counts of each.
//!
//! Read models own this form and may change it with a rebuild; the log has its own (eventlog's schemas).

use envforge_domain::runtime::ReadyService;
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
struct Stored {
    name: String,
    cpu_millicores: u32,
    memory_mib: u32,
}

pub(crate) fn to_text(services: &[ReadyService]) -> String {
    let stored = services.iter().map(|service| Stored {
        name: service.name.to_string(),
        cpu_millicores: service.cpu_millicores,
        memory_mib: service.memory_mib,
    });
    serde_json::to_string(&stored.collect::<Vec<_>>()).expect("texts and numbers always make JSON")
}

pub(crate) fn parse(text: &str) -> Result<Vec<ReadyService>, String> {
    let stored: Vec<Stored> = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let services = stored.into_iter().map(|Stored { name, cpu_millicores, memory_mib }| {
        let name = name.parse().map_err(|error| format!("{error}"))?;
        Ok(ReadyService { name, cpu_millicores, memory_mib })
    });
    services.collect()
}
