//! What `fuzz/` feeds with manifests that nobody has written.
//!
//! Not here: running it (`cargo xtask fuzz`) and what it is run on (`fuzz/inputs`, which the test below goes through).

use crate::manifest::{Manifest, PathPrefix, Route};

/// A manifest that is taken has one canonical text; one that is refused says where and why.
pub fn manifest(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let manifest = match Manifest::parse(text) {
        Ok(manifest) => manifest,
        Err(errors) => {
            assert!(!errors.errors().is_empty() && !errors.to_string().is_empty());
            return;
        }
    };
    let canonical = manifest.render();
    let again = Manifest::parse(&canonical).unwrap_or_else(|errors| panic!("{errors}\n{canonical}"));
    assert_eq!(again, manifest);
    assert_eq!((again.render(), again.digest()), (canonical, manifest.digest()));
    let mut names: Vec<_> = manifest.services.iter().map(|service| service.name.as_str()).collect();
    names.sort_unstable();
    assert!(!names.is_empty() && names.windows(2).all(|pair| pair[0] != pair[1]), "two services of one name");
    let mut prefixes: Vec<&PathPrefix> = Vec::new();
    for service in &manifest.services {
        if let Some(directory) = &service.directory {
            assert!(!directory.starts_with('/') && directory.split('/').all(|part| !matches!(part, "" | "." | "..")));
        }
        match &service.route {
            Route::Api { prefix, .. } | Route::Assets { prefix } | Route::Marketing { prefix } => prefixes.push(prefix),
            Route::None | Route::Web { .. } => {}
        }
        for (name, value) in &service.environment {
            assert!(!name.starts_with("ENVFORGE_") && !name.contains(['=', '\0']) && !value.contains('\0'));
            assert!(!service.secrets.contains(name));
        }
    }
    prefixes.sort_unstable();
    assert!(prefixes.windows(2).all(|pair| pair[0] != pair[1]), "two routes of one prefix");
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    #[test]
    fn the_committed_inputs_of_the_manifests_fuzz_target_hold() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/inputs/manifest");
        let mut inputs = 0;
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            // Seen where it panics.
            println!("{}", path.display());
            super::manifest(&std::fs::read(path).unwrap());
            inputs += 1;
        }
        assert!(inputs > 0, "{} is empty", folder.display());
    }
}
