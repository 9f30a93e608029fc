//! What is in an image, as an SPDX 2.3 document: crates, what the compilers link in, Debian's packages.

use std::collections::BTreeSet;

use anyhow::Result;
use serde::Serialize;

use super::crates::{Crate, Crates, Id};
use super::runtime::Linked;
use crate::arch::Arch;
use crate::setup::{Origin, oci};

/// For what is not said: the specification's word.
const NO_ASSERTION: &str = "NOASSERTION";

const DOCUMENT: &str = "SPDXRef-DOCUMENT";
const IMAGE: &str = "SPDXRef-image";

/// Everything that a document is made of.
pub struct Contents<'a> {
    /// Name of the image, without its repository.
    pub image: &'a str,
    /// Version of Podmotion.
    pub version: &'a str,
    /// The image's architecture.
    pub arch: Arch,
    /// Time in seconds.
    pub created: u64,
    /// Crates of the programs.
    pub crates: &'a Crates,
    /// Version of the Rust compiler.
    pub rust: &'a str,
    /// Packages of the C libraries that programs are linked with.
    pub linked: &'a [Linked],
    /// Packages of the CRIU bundle, and where the bundle is in the image.
    pub bundle: Option<(&'a [Origin], &'a str)>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    spdx_version: &'static str,
    data_license: &'static str,
    #[serde(rename = "SPDXID")]
    id: &'static str,
    name: String,
    document_namespace: String,
    creation_info: CreationInfo,
    document_describes: [&'static str; 1],
    packages: Vec<Package>,
    relationships: Vec<Relationship>,
}

#[derive(Serialize)]
struct CreationInfo {
    created: String,
    creators: [String; 1],
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Package {
    #[serde(rename = "SPDXID")]
    id: String,
    name: String,
    version_info: String,
    download_location: String,
    files_analyzed: bool,
    license_concluded: &'static str,
    license_declared: String,
    copyright_text: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    license_comments: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    source_info: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    primary_package_purpose: Option<&'static str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    checksums: Vec<Checksum>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    external_refs: Vec<ExternalRef>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Checksum {
    algorithm: &'static str,
    checksum_value: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ExternalRef {
    reference_category: &'static str,
    reference_type: &'static str,
    reference_locator: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Relationship {
    spdx_element_id: String,
    relationship_type: &'static str,
    related_spdx_element: String,
}

/// The document of `contents`; the same contents make the same document.
///
/// # Errors
/// When the time is none.
pub fn document(contents: &Contents<'_>) -> Result<Vec<u8>> {
    let name = format!(
        "{}-{}-{}",
        contents.image,
        contents.version,
        contents.arch.name()
    );
    let mut packages = vec![image(contents)];
    let mut relationships = vec![relationship(DOCUMENT, "DESCRIBES", IMAGE)];
    crates(contents, &mut packages, &mut relationships);
    compilers(contents, &mut packages, &mut relationships);
    if let Some((origins, place)) = contents.bundle {
        for origin in origins {
            let package = debian(origin, place, contents.arch);
            relationships.push(relationship(IMAGE, "CONTAINS", &package.id));
            packages.push(package);
        }
    }
    // Two documents with different contents must not have the same name.
    let digest = oci::digest(&serde_json::to_vec(&(&packages, &relationships))?);
    let document = Document {
        spdx_version: "SPDX-2.3",
        data_license: "CC0-1.0",
        id: DOCUMENT,
        document_namespace: format!("https://spdx.org/spdxdocs/{name}-{digest}"),
        name,
        creation_info: CreationInfo {
            created: oci::timestamp(contents.created)?,
            creators: [format!("Tool: podmotion-xtask-{}", contents.version)],
        },
        document_describes: [IMAGE],
        packages,
        relationships,
    };
    let mut json = serde_json::to_vec_pretty(&document)?;
    json.push(b'\n');
    Ok(json)
}

fn image(contents: &Contents<'_>) -> Package {
    Package {
        primary_package_purpose: Some("CONTAINER"),
        ..package(
            IMAGE.to_owned(),
            contents.image,
            contents.version,
            "Apache-2.0",
        )
    }
}

fn crates(
    contents: &Contents<'_>,
    packages: &mut Vec<Package>,
    relationships: &mut Vec<Relationship>,
) {
    for (id, known) in &contents.crates.all {
        packages.push(crate_package(id, known));
        for used in &known.uses {
            relationships.push(relationship(&crate_id(id), "DEPENDS_ON", &crate_id(used)));
        }
    }
    for root in &contents.crates.roots {
        relationships.push(relationship(IMAGE, "CONTAINS", &crate_id(root)));
    }
}

fn crate_package(id: &Id, known: &Crate) -> Package {
    let (name, version) = id;
    let mut package = package(crate_id(id), name, version, &known.licence);
    if let Some(checksum) = &known.checksum {
        package.checksums.push(Checksum {
            algorithm: "SHA256",
            checksum_value: checksum.clone(),
        });
        package
            .external_refs
            .push(purl(format!("pkg:cargo/{name}@{}", escape(version))));
    }
    package
}

fn compilers(
    contents: &Contents<'_>,
    packages: &mut Vec<Package>,
    relationships: &mut Vec<Relationship>,
) {
    let mut linked = vec![Package {
        source_info: Some("the standard library of the Rust compiler".to_owned()),
        ..package(
            "SPDXRef-rust-std".to_owned(),
            "rust-std",
            contents.rust,
            "MIT OR Apache-2.0",
        )
    }];
    let mut seen = BTreeSet::new();
    for it in contents.linked.iter().filter(|it| seen.insert(&it.name)) {
        let mut package = package(
            format!("SPDXRef-linked-{}", sanitised(&it.name)),
            &it.name,
            &it.version,
            NO_ASSERTION,
        );
        package.source_info = Some(source_info(&it.source, &it.source_version));
        package
            .external_refs
            .push(purl(debian_purl(&it.name, &it.version, None)));
        linked.push(package);
    }
    for package in linked {
        for root in &contents.crates.roots {
            relationships.push(relationship(&crate_id(root), "STATIC_LINK", &package.id));
        }
        packages.push(package);
    }
}

fn debian(origin: &Origin, place: &str, arch: Arch) -> Package {
    let mut package = package(
        format!("SPDXRef-debian-{}", sanitised(&origin.name)),
        &origin.name,
        &origin.version,
        NO_ASSERTION,
    );
    package.download_location = origin.source_location.clone();
    package.license_comments = Some(format!(
        "The text is in the image, /{place}/{}",
        origin.licence
    ));
    package.source_info = Some(source_info(&origin.source, &origin.source_version));
    package
        .external_refs
        .push(purl(debian_purl(&origin.name, &origin.version, Some(arch))));
    package
}

fn package(id: String, name: &str, version: &str, licence: &str) -> Package {
    Package {
        id,
        name: name.to_owned(),
        version_info: version.to_owned(),
        download_location: NO_ASSERTION.to_owned(),
        files_analyzed: false,
        license_concluded: NO_ASSERTION,
        license_declared: licence.to_owned(),
        copyright_text: NO_ASSERTION,
        license_comments: None,
        source_info: None,
        primary_package_purpose: None,
        checksums: Vec::new(),
        external_refs: Vec::new(),
    }
}

fn relationship(from: &str, kind: &'static str, to: &str) -> Relationship {
    Relationship {
        spdx_element_id: from.to_owned(),
        relationship_type: kind,
        related_spdx_element: to.to_owned(),
    }
}

fn source_info(source: &str, version: &str) -> String {
    format!("Debian's source package {source} {version}")
}

fn purl(locator: String) -> ExternalRef {
    ExternalRef {
        reference_category: "PACKAGE-MANAGER",
        reference_type: "purl",
        reference_locator: locator,
    }
}

fn debian_purl(name: &str, version: &str, arch: Option<Arch>) -> String {
    let arch = arch.map_or(String::new(), |arch| format!("?arch={}", arch.name()));
    format!("pkg:deb/debian/{}@{}{arch}", escape(name), escape(version))
}

/// A part of a package URL: what else would have a meaning in it is written as its code.
fn escape(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'.' | b'-' | b'_' | b'~' | b':' => {
                char::from(byte).to_string()
            }
            other => format!("%{other:02X}"),
        })
        .collect()
}

fn crate_id((name, version): &Id) -> String {
    format!("SPDXRef-crate-{}-{}", sanitised(name), sanitised(version))
}

/// Letters, digits, `.` and `-` are all that an identifier may have; a `.` for each other character.
fn sanitised(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            c if c.is_ascii_alphanumeric() || c == '-' => c,
            _ => '.',
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::PathBuf;

    use serde_json::Value;

    use super::*;

    fn sample() -> Crates {
        let id = |name: &str, version: &str| (name.to_owned(), version.to_owned());
        let known = |checksum: Option<&str>, uses: &[Id]| Crate {
            licence: "MIT".to_owned(),
            checksum: checksum.map(str::to_owned),
            folder: PathBuf::new(),
            uses: uses.iter().cloned().collect(),
        };
        let serde_one = id("serde_json", "1.0.0+x");
        Crates {
            roots: BTreeSet::from([id("podmotion-shim", "0.1.0")]),
            all: BTreeMap::from([
                (
                    id("podmotion-shim", "0.1.0"),
                    known(None, std::slice::from_ref(&serde_one)),
                ),
                (serde_one, known(Some("ab"), &[])),
            ]),
        }
    }

    fn parsed() -> Value {
        let linked = Linked {
            name: "libc6-dev".to_owned(),
            version: "2.36-9".to_owned(),
            source: "glibc".to_owned(),
            source_version: "2.36-9".to_owned(),
            copyright: PathBuf::new(),
        };
        let origins = [Origin {
            name: "libgmp10".to_owned(),
            version: "2:6.3.0+dfsg-5+b2".to_owned(),
            source: "gmp".to_owned(),
            source_version: "2:6.3.0+dfsg-5".to_owned(),
            source_location: "https://example.test/gmp".to_owned(),
            licence: "licences/libgmp10".to_owned(),
        }];
        let document = document(&Contents {
            image: "podmotion-installer",
            version: "0.1.0",
            arch: Arch::Arm64,
            created: 1_700_000_000,
            crates: &sample(),
            rust: "1.95.0",
            // The same package has two of the libraries.
            linked: &[linked.clone(), linked],
            bundle: Some((&origins, "podmotion/criu")),
        })
        .expect("document");
        serde_json::from_slice(&document).expect("JSON")
    }

    #[test]
    fn every_part_is_in_the_document_once_and_tied_to_another() {
        let document = parsed();
        let packages = document["packages"].as_array().expect("packages");
        let ids: Vec<&str> = packages
            .iter()
            .map(|it| it["SPDXID"].as_str().expect("id"))
            .collect();
        let unique: BTreeSet<&str> = ids.iter().copied().collect();
        assert_eq!(unique.len(), ids.len(), "{ids:?}");
        assert_eq!(ids.len(), 6, "{ids:?}");
        let mut reached = BTreeSet::from([DOCUMENT]);
        for it in document["relationships"].as_array().expect("relationships") {
            let from = it["spdxElementId"].as_str().expect("from");
            let to = it["relatedSpdxElement"].as_str().expect("to");
            assert!(from == DOCUMENT || unique.contains(from), "{from}");
            assert!(unique.contains(to), "{to}");
            reached.insert(to);
        }
        assert!(unique.is_subset(&reached), "{unique:?} {reached:?}");
    }

    #[test]
    fn identifiers_and_addresses_have_only_what_they_may() {
        let document = parsed();
        for it in document["packages"].as_array().expect("packages") {
            let id = it["SPDXID"].as_str().expect("id");
            assert!(
                id.chars()
                    .all(|c| c.is_ascii_alphanumeric() || ".-".contains(c)),
                "{id}"
            );
            let licence = it["licenseDeclared"].as_str().expect("licence");
            if licence != NO_ASSERTION {
                spdx::Expression::parse(licence).expect("SPDX expression");
            }
        }
        let text = document.to_string();
        assert!(text.contains("pkg:deb/debian/libgmp10@2:6.3.0%2Bdfsg-5%2Bb2?arch=arm64"));
        assert!(text.contains("pkg:cargo/serde_json@1.0.0%2Bx"));
        assert!(text.contains("/podmotion/criu/licences/libgmp10"));
    }
}
