use super::*;
use crate::setup::files;

fn entries(archive: &Path) -> BTreeMap<String, Vec<u8>> {
    read_tar(File::open(archive).expect("open"))
}

fn read_tar(reader: impl Read) -> BTreeMap<String, Vec<u8>> {
    let mut tar = tar::Archive::new(reader);
    tar.entries()
        .expect("entries")
        .map(|entry| {
            let mut entry = entry.expect("entry");
            let name = entry.path().expect("path").display().to_string();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).expect("read");
            (name, content)
        })
        .collect()
}

/// The content that a descriptor points to, its digest and size verified.
fn follow(entries: &BTreeMap<String, Vec<u8>>, descriptor: &Value) -> Vec<u8> {
    let wanted = descriptor["digest"]
        .as_str()
        .and_then(|digest| digest.strip_prefix("sha256:"))
        .expect("digest");
    let blob = &entries[&format!("blobs/sha256/{wanted}")];
    assert_eq!(digest(blob), wanted);
    assert_eq!(descriptor["size"], blob.len());
    blob.clone()
}

fn parse(content: &[u8]) -> Value {
    serde_json::from_slice(content).expect("JSON")
}

fn image<'a>(labels: &'a BTreeMap<String, String>, architecture: &'a str) -> Image<'a> {
    Image {
        name: "example.test/a:1",
        architecture,
        entrypoint: &["/bin/program"],
        command: &["x"],
        env: &["A=b"],
        labels,
        created: 1_700_000_000,
    }
}

#[test]
fn an_archive_leads_from_its_index_to_every_layer() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let program = dir.path().join("program");
    files::write(&program, b"content").expect("write");
    let layer = dir.path().join("layer.tar");
    write_layer(&layer, &[("bin/program".to_owned(), program)]).expect("layer");
    let out = dir.path().join("image.tar");
    let labels = BTreeMap::from([("a".to_owned(), "b".to_owned())]);
    write_archive(&out, &image(&labels, "amd64"), std::slice::from_ref(&layer)).expect("archive");

    let entries = entries(&out);
    let index = parse(&entries["index.json"]);
    let entry = &index["manifests"][0];
    assert_eq!(
        entry["annotations"],
        json!({
            "io.containerd.image.name": "example.test/a:1",
            "org.opencontainers.image.ref.name": "1",
        })
    );
    let manifest = parse(&follow(&entries, entry));
    assert_eq!(manifest["annotations"]["a"], "b");
    let config = parse(&follow(&entries, &manifest["config"]));
    assert_eq!(config["config"]["Entrypoint"][0], "/bin/program");
    assert_eq!(config["config"]["Labels"]["a"], "b");
    assert_eq!(config["created"], "2023-11-14T22:13:20Z");
    assert_eq!(
        config["rootfs"]["diff_ids"][0],
        manifest["layers"][0]["digest"]
    );
    assert_eq!(
        follow(&entries, &manifest["layers"][0]),
        files::read(&layer).expect("layer")
    );
}

#[test]
fn the_same_content_makes_the_same_layer() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let mut digests = Vec::new();
    for round in ["one", "two"] {
        let source = dir.path().join(round);
        files::write(&source, b"content").expect("write");
        let layer = dir.path().join(format!("{round}.tar"));
        write_layer(&layer, &[("file".to_owned(), source)]).expect("layer");
        digests.push(digest(&files::read(&layer).expect("read")));
    }
    assert_eq!(digests[0], digests[1]);
}

#[test]
fn a_compressed_layer_is_known_by_what_is_in_it_too() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let layer = dir.path().join("layer.tar.gz");
    let content = BTreeMap::from([
        ("a".to_owned(), Content::Directory),
        ("a/b".to_owned(), Content::Bytes(b"content".to_vec())),
    ]);
    write_gzip_layer(&layer, &content, 1_700_000_000).expect("layer");
    let out = dir.path().join("image.tar");
    let labels = BTreeMap::new();
    write_archive(&out, &image(&labels, "amd64"), std::slice::from_ref(&layer)).expect("archive");

    let entries = entries(&out);
    let manifest = parse(&follow(
        &entries,
        &parse(&entries["index.json"])["manifests"][0],
    ));
    let descriptor = &manifest["layers"][0];
    assert_eq!(descriptor["mediaType"], format!("{LAYER}+gzip"));
    let mut tar = Vec::new();
    GzDecoder::new(follow(&entries, descriptor).as_slice())
        .read_to_end(&mut tar)
        .expect("compressed");
    assert_eq!(read_tar(tar.as_slice())["a/b"], b"content");
    let config = parse(&follow(&entries, &manifest["config"]));
    assert_eq!(
        config["rootfs"]["diff_ids"][0],
        format!("sha256:{}", digest(&tar))
    );
    assert!(
        manifest.get("annotations").is_none() && config["config"].get("Labels").is_none(),
        "nothing is said about it"
    );
}

#[test]
fn an_index_leads_to_the_image_of_each_architecture() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let labels = BTreeMap::new();
    let images = ["amd64", "arm64"].map(|architecture| {
        let layer = dir.path().join(architecture);
        let content = BTreeMap::from([(
            architecture.to_owned(),
            Content::Bytes(architecture.as_bytes().to_vec()),
        )]);
        write_gzip_layer(&layer, &content, EPOCH).expect("layer");
        pack(&image(&labels, architecture), &[layer]).expect("image")
    });
    let out = dir.path().join("index.tar");
    let digest =
        write_index(&out, "example.test/a:1", &labels, &[&images[0], &images[1]]).expect("index");

    let entries = entries(&out);
    let top = parse(&entries["index.json"]);
    assert_eq!(top["manifests"][0]["digest"], digest);
    let index = parse(&follow(&entries, &top["manifests"][0]));
    for (entry, architecture) in index["manifests"]
        .as_array()
        .expect("images")
        .iter()
        .zip(["amd64", "arm64"])
    {
        assert_eq!(entry["platform"]["architecture"], architecture);
        let manifest = parse(&follow(&entries, entry));
        let config = parse(&follow(&entries, &manifest["config"]));
        assert_eq!(config["architecture"], architecture);
        follow(&entries, &manifest["layers"][0]);
    }
}
