//! How to look around in a demo that was left up.

use anyhow::Result;
use podmotion_integration_tests::{Node, Pod};

use super::scene::{PORT, SCALEDOWN};

/// Commands to copy.
pub fn around(node: &Node, pod: &Pod, container: &str) -> Result<String> {
    let pid = std::process::id();
    let ctr = format!(
        "{} --address {} --namespace k8s.io",
        node.tools().ctr()?.display(),
        node.run_folder().join("containerd.sock").display()
    );
    let url = format!("http://{}/", pod.address(PORT)?);
    let log = node.folder().join("containerd.log").display().to_string();
    let socket = format!("/run/podmotion/shims/{}.sock", pod.id());
    Ok(format!(
        "\nThe demo is up, and stays until Ctrl-C. It lives in mount and network namespaces of its own.\n\
         Enter them in another terminal, as root:\n\n\
         \x20   nsenter --target {pid} --mount --net\n\n\
         and there\n\n\
         \x20   curl {url}\n\
         \x20   {ctr} tasks ls\n\
         \x20   {ctr} tasks exec --exec-id look --tty {container} sh\n\
         \x20   ls -l /var/lib/podmotion/checkpoints/{container}   # while it sleeps\n\
         \x20   tail -f {log}   # containerd and its shims\n\
         \x20   ls -l {socket}   # the shim's own service\n\n\
         The container falls asleep {SCALEDOWN} after its last packet; curl and exec wake it.\n"
    ))
}
