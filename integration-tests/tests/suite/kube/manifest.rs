//! What tests tell Kubernetes to run.

use std::sync::atomic::{AtomicU32, Ordering};

use podmotion_integration_tests::Image;
use serde_json::{Value, json};

/// Numbers for pods, so that no name comes twice.
static PODS: AtomicU32 = AtomicU32::new(0);

/// A pod of our runtime class. Its containers sleep only when they are told to.
pub(super) fn pod(containers: Vec<Value>) -> Value {
    let number = PODS.fetch_add(1, Ordering::Relaxed);
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": format!("pod-{number}"),
            "annotations": {
                "komodor.com/podmotion-scaledown-duration": "1h",
                // Also for those that do not listen.
                "komodor.com/podmotion-ports-map": "app=8080;other=8081",
            },
        },
        "spec": {
            "runtimeClassName": "podmotion",
            "automountServiceAccountToken": false,
            "terminationGracePeriodSeconds": 30,
            "containers": containers,
        },
    })
}

/// A container called `name` that counts requests on `port`.
pub(super) fn counter(name: &str, port: u16) -> Value {
    container(name, Image::Apps, &["python3", "/apps/counter.py"])
        .with("env", json!([{"name": "PORT", "value": port.to_string()}]))
        .with("ports", json!([{"containerPort": port}]))
}

/// A container called `name` that runs a Python program.
pub(super) fn python(name: &str, program: &str, environment: &[(&str, &str)]) -> Value {
    let environment: Vec<_> = environment
        .iter()
        .map(|(name, value)| json!({"name": name, "value": value}))
        .collect();
    container(name, Image::Apps, &["python3", "-c", program]).with("env", json!(environment))
}

/// A container called `name` that answers one request on `port` and ends with `code`.
pub(super) fn once(name: &str, port: u16, code: u8) -> Value {
    let program = format!(
        "import os, socket\n\
         server = socket.create_server(('', {port}))\n\
         print('listening', flush=True)\n\
         client = server.accept()[0]\n\
         request = b''\n\
         while not request.endswith(b'\\r\\n\\r\\n'): request += client.recv(4096)\n\
         client.sendall(b'HTTP/1.1 200 OK\\r\\nContent-Length: 4\\r\\n\\r\\nbye\\n')\n\
         os._exit({code})"
    );
    container(name, Image::Apps, &["python3", "-c", &program])
        .with("ports", json!([{"containerPort": port}]))
}

/// A container called `name` that runs a shell script.
pub(super) fn script(name: &str, script: &str) -> Value {
    container(name, Image::Busybox, &["sh", "-c", script])
}

fn container(name: &str, image: Image, command: &[&str]) -> Value {
    json!({
        "name": name,
        "image": image.reference(),
        "imagePullPolicy": "Never",
        "command": command,
    })
}

/// Fields set one after the other.
pub(super) trait With {
    /// The object with `field` set to `value`.
    fn with(self, field: &str, value: Value) -> Value;
}

impl With for Value {
    fn with(mut self, field: &str, value: Value) -> Value {
        self[field] = value;
        self
    }
}
