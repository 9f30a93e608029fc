//! Where the TCP connections of a dumped container stand.
//!
//! CRIU describes each socket in `files.img`: two magics, then length-prefixed `file_entry` messages
//! of its `images/fdinfo.proto`, whose field 4 is an `inet_sk_entry` (`images/sk-inet.proto`). The
//! state of an established one is in `tcp-stream-<inode, hexadecimal>.img`, one `tcp_stream_entry`
//! (`images/tcp-stream.proto`) behind the same kind of header.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use protobuf::CodedInputStream;

/// `TCPI_OPT_WSCALE` of `linux/tcp.h`.
const WINDOW_SCALING: u64 = 4;

/// A dumped TCP connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Connection {
    /// The container's end.
    pub local: SocketAddr,
    /// The other end.
    pub remote: SocketAddr,
    /// Sequence number of the next byte that it waits for.
    pub rcv_nxt: u32,
    /// Sequence number of the next byte that it would send.
    pub snd_nxt: u32,
    /// Its receive window as a segment announces it, scaled.
    pub window: u16,
}

/// The images do not tell of the connections.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionsError {
    /// An image cannot be read.
    #[error("read {}", path.display())]
    Read {
        /// The image.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// An image does not decode.
    #[error("decode {}", path.display())]
    Decode {
        /// The image.
        path: PathBuf,
        /// The decoder's answer.
        #[source]
        source: protobuf::Error,
    },
}

/// Reads the connections from a dump's images. Those without a state of their own (a socket being
/// closed whose end CRIU does not keep) are left out.
///
/// # Errors
/// When an image cannot be read or does not decode.
pub fn read(images_dir: &Path) -> Result<Vec<Connection>, ConnectionsError> {
    let mut connections = Vec::new();
    for socket in parse(&images_dir.join("files.img"), sockets)? {
        let (Some(local), Some(remote)) = (socket.local(), socket.remote()) else {
            continue;
        };
        let path = images_dir.join(format!("tcp-stream-{:x}.img", socket.inode));
        if !path.exists() {
            continue;
        }
        if let Some(stream) = parse(&path, stream)? {
            connections.push(Connection {
                local,
                remote,
                rcv_nxt: stream.rcv_nxt,
                snd_nxt: stream.snd_nxt,
                window: stream.window(),
            });
        }
    }
    Ok(connections)
}

fn parse<T>(
    path: &Path,
    how: impl FnOnce(&[u8]) -> protobuf::Result<T>,
) -> Result<T, ConnectionsError> {
    let image = fs::read(path).map_err(|source| ConnectionsError::Read {
        path: path.to_owned(),
        source,
    })?;
    how(&image).map_err(|source| ConnectionsError::Decode {
        path: path.to_owned(),
        source,
    })
}

/// The messages of an image. One that ends early gives those that are whole.
fn messages(image: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = image.get(8..).unwrap_or_default();
    std::iter::from_fn(move || {
        let (length, after) = rest.split_first_chunk::<4>()?;
        let message = after.get(..u32::from_le_bytes(*length) as usize)?;
        rest = &after[message.len()..];
        Some(message)
    })
}

#[derive(Default)]
struct Socket {
    inode: u64,
    local_port: u64,
    remote_port: u64,
    local: Vec<u32>,
    remote: Vec<u32>,
}

impl Socket {
    fn local(&self) -> Option<SocketAddr> {
        address(&self.local, self.local_port)
    }

    fn remote(&self) -> Option<SocketAddr> {
        address(&self.remote, self.remote_port)
    }
}

/// An address is words as they are in memory, in network order; the port is a number.
fn address(words: &[u32], port: u64) -> Option<SocketAddr> {
    let ip: IpAddr = match words {
        [word] => Ipv4Addr::from(word.to_ne_bytes()).into(),
        [a, b, c, d] => {
            let mut octets = [0; 16];
            for (to, word) in octets.chunks_exact_mut(4).zip([a, b, c, d]) {
                to.copy_from_slice(&word.to_ne_bytes());
            }
            Ipv6Addr::from(octets).into()
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, u16::try_from(port).ok()?))
}

fn sockets(image: &[u8]) -> protobuf::Result<Vec<Socket>> {
    let mut sockets = Vec::new();
    for message in messages(image) {
        fields(message, |number, field| {
            if let (4, Field::Bytes(socket)) = (number, field) {
                sockets.push(read_socket(socket)?);
            }
            Ok(())
        })?;
    }
    Ok(sockets)
}

fn read_socket(message: &[u8]) -> protobuf::Result<Socket> {
    let mut socket = Socket::default();
    fields(message, |number, field| {
        match (number, field) {
            (2, Field::Number(inode)) => socket.inode = inode,
            (7, Field::Number(port)) => socket.local_port = port,
            (8, Field::Number(port)) => socket.remote_port = port,
            (11, field) => words(field, &mut socket.local)?,
            (12, field) => words(field, &mut socket.remote)?,
            _ => {}
        }
        Ok(())
    })?;
    Ok(socket)
}

/// A repeated number, each on its own or packed.
fn words(field: Field<'_>, words: &mut Vec<u32>) -> protobuf::Result<()> {
    match field {
        Field::Number(word) => words.push(word as u32),
        Field::Bytes(packed) => {
            let mut stream = CodedInputStream::from_bytes(packed);
            while !stream.eof()? {
                words.push(stream.read_uint32()?);
            }
        }
    }
    Ok(())
}

#[derive(Default)]
struct Stream {
    rcv_nxt: u32,
    snd_nxt: u32,
    options: u64,
    rcv_wscale: u32,
    rcv_wnd: u64,
}

impl Stream {
    fn window(&self) -> u16 {
        let scale = if self.options & WINDOW_SCALING != 0 {
            self.rcv_wscale
        } else {
            0
        };
        u16::try_from(self.rcv_wnd.checked_shr(scale).unwrap_or(0)).unwrap_or(u16::MAX)
    }
}

fn stream(image: &[u8]) -> protobuf::Result<Option<Stream>> {
    let Some(message) = messages(image).next() else {
        return Ok(None);
    };
    let mut stream = Stream::default();
    fields(message, |number, field| {
        if let Field::Number(value) = field {
            match number {
                2 => stream.rcv_nxt = value as u32,
                4 => stream.snd_nxt = value as u32,
                5 => stream.options = value,
                8 => stream.rcv_wscale = value as u32,
                16 => stream.rcv_wnd = value,
                _ => {}
            }
        }
        Ok(())
    })?;
    Ok(Some(stream))
}

enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// Calls `each` for the varint and length-delimited fields of a message.
fn fields(
    message: &[u8],
    mut each: impl FnMut(u32, Field<'_>) -> protobuf::Result<()>,
) -> protobuf::Result<()> {
    let mut stream = CodedInputStream::from_bytes(message);
    while let Some(tag) = stream.read_raw_tag_or_eof()? {
        match tag & 7 {
            0 => each(tag >> 3, Field::Number(stream.read_uint64()?))?,
            1 => stream.read_fixed64().map(drop)?,
            2 => each(tag >> 3, Field::Bytes(&stream.read_bytes()?))?,
            _ => stream.read_fixed32().map(drop)?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use protobuf::CodedOutputStream;

    use super::*;

    fn image(message: &[u8]) -> Vec<u8> {
        let length = (message.len() as u32).to_le_bytes();
        [&[0; 8], &length[..], message].concat()
    }

    fn message(write: impl FnOnce(&mut CodedOutputStream<'_>) -> protobuf::Result<()>) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut stream = CodedOutputStream::vec(&mut bytes);
        write(&mut stream).unwrap();
        stream.flush().unwrap();
        drop(stream);
        bytes
    }

    fn directory(addresses: [u32; 2]) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        let socket = message(|out| {
            out.write_uint32(1, 9)?;
            out.write_uint32(2, 0xabc)?;
            out.write_uint32(7, 8080)?;
            out.write_uint32(8, 40000)?;
            out.write_uint32(11, addresses[0])?;
            out.write_uint32(12, addresses[1])
        });
        let file = message(|out| out.write_bytes(4, &socket));
        fs::write(directory.path().join("files.img"), image(&file)).unwrap();
        let stream = message(|out| {
            out.write_uint32(2, 1000)?;
            out.write_uint32(4, u32::MAX)?;
            out.write_uint32(5, 7)?;
            out.write_uint32(8, 7)?;
            out.write_uint32(16, 65536)
        });
        fs::write(directory.path().join("tcp-stream-abc.img"), image(&stream)).unwrap();
        directory
    }

    #[test]
    fn reads_addresses_numbers_and_the_window_as_announced() {
        let words = [[10, 0, 0, 1], [10, 0, 0, 2]].map(u32::from_ne_bytes);
        let expected = Connection {
            local: "10.0.0.1:8080".parse().unwrap(),
            remote: "10.0.0.2:40000".parse().unwrap(),
            rcv_nxt: 1000,
            snd_nxt: u32::MAX,
            window: 512,
        };
        assert_eq!(read(directory(words).path()).unwrap(), [expected]);
    }

    #[test]
    fn a_socket_without_a_stream_is_no_connection() {
        let directory = directory([1, 2]);
        fs::remove_file(directory.path().join("tcp-stream-abc.img")).unwrap();
        assert_eq!(read(directory.path()).unwrap(), []);
    }

    #[test]
    fn images_cut_short_are_no_panic() {
        let directory = directory([1, 2]);
        for name in ["tcp-stream-abc.img", "files.img"] {
            let path = directory.path().join(name);
            let whole = fs::read(&path).unwrap();
            for length in 0..whole.len() {
                fs::write(&path, &whole[..length]).unwrap();
                let _ = read(directory.path());
            }
        }
    }

    proptest! {
        /// Whatever an image holds, it is read or refused.
        #[test]
        fn any_image_is_read_or_refused(
        noise in proptest::collection::vec(
            prop_oneof![4 => 0_u8..40, 1 => any::<u8>()], 0..80),
        ) {
            for image in [image(&noise), [&[0; 8], &noise[..]].concat(), noise] {
                if let Ok(sockets) = sockets(&image) {
                    for socket in &sockets {
                        let _ = (socket.local(), socket.remote());
                    }
                }
                if let Ok(Some(stream)) = stream(&image) {
                    let _ = stream.window();
                }
            }
        }
    }
}
