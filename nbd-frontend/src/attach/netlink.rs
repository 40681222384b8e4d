//! The kernel's `nbd` family of generic netlink, which gives a block device a socket to talk to.
//!
//! Five small messages do not need a netlink library: a message is a header, a generic header and
//! attributes of `{u16 length, u16 number, bytes}`, each padded to four bytes, in native order.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket,
};

const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const GENL_ID_CTRL: u16 = 16;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
const NLA_TYPE_MASK: u16 = 0x3fff;
const NLA_F_NESTED: u16 = 0x8000;
const HEADERS_BYTES: usize = 20;

const CMD_CONNECT: u8 = 1;
const CMD_DISCONNECT: u8 = 2;
const CMD_RECONFIGURE: u8 = 3;
const CMD_STATUS: u8 = 5;

const ATTR_INDEX: u16 = 1;
const ATTR_SIZE_BYTES: u16 = 2;
const ATTR_BLOCK_SIZE_BYTES: u16 = 3;
const ATTR_TIMEOUT: u16 = 4;
const ATTR_SERVER_FLAGS: u16 = 5;
const ATTR_CLIENT_FLAGS: u16 = 6;
const ATTR_SOCKETS: u16 = 7;
const ATTR_DEAD_CONN_TIMEOUT: u16 = 8;
const ATTR_DEVICE_LIST: u16 = 9;
const ATTR_BACKEND_IDENTIFIER: u16 = 10;
const DEVICE_ITEM: u16 = 1;
const DEVICE_CONNECTED: u16 = 2;
const SOCKET_ITEM: u16 = 1;
const SOCKET_FD: u16 = 1;

/// What the kernel needs to know of a device it connects.
pub struct Connect<'a> {
    pub size_bytes: u64,
    pub block_size_bytes: u32,
    /// NBD transmission flags, as in the handshake that is not held here.
    pub server_flags: u16,
    /// How long requests wait for a new socket after the old one died, in seconds.
    pub dead_connection_timeout_s: u32,
    /// Shown in /sys/block/nbdX/backend; must be the same at every RECONFIGURE.
    pub backend: &'a str,
}

/// A connection to the kernel's nbd family. Every call may block for long: on I/O of the device, on
/// a full socket, or on another process' call. Never call it from a thread that serves the device.
pub struct NbdControl {
    socket: OwnedFd,
    family: u16,
}

impl NbdControl {
    /// Finds the family. `NotFound` when the kernel has no nbd (or its module is not loaded).
    pub fn open() -> io::Result<Self> {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkGeneric,
        )?;
        let mut control = Self { socket, family: GENL_ID_CTRL };
        let mut message = Message::new(CTRL_CMD_GETFAMILY);
        message.attribute(CTRL_ATTR_FAMILY_NAME, b"nbd\0");
        let reply = control.call(message)?;
        control.family = find(&reply, CTRL_ATTR_FAMILY_ID)
            .and_then(|bytes| bytes.try_into().ok())
            .map(u16::from_ne_bytes)
            .ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        Ok(control)
    }

    /// Makes a free device talk to `peer` and gives its number.
    pub fn connect(&self, device: &Connect<'_>, peer: BorrowedFd<'_>) -> io::Result<u32> {
        let mut message = Message::new(CMD_CONNECT);
        message.number(ATTR_SIZE_BYTES, device.size_bytes);
        message.number(ATTR_BLOCK_SIZE_BYTES, device.block_size_bytes.into());
        message.number(ATTR_SERVER_FLAGS, device.server_flags.into());
        message.number(ATTR_CLIENT_FLAGS, 0);
        // A timeout would cut off a server that is alive but slow, and send its writes twice.
        message.number(ATTR_TIMEOUT, 0);
        message.number(ATTR_DEAD_CONN_TIMEOUT, device.dead_connection_timeout_s.into());
        message.text(ATTR_BACKEND_IDENTIFIER, device.backend);
        message.sockets(peer);
        let reply = self.call(message)?;
        find(&reply, ATTR_INDEX)
            .and_then(|bytes| bytes.try_into().ok())
            .map(u32::from_ne_bytes)
            .ok_or_else(|| io::Error::other("the kernel's answer to CONNECT has no device number"))
    }

    /// Offers a new socket to device `index`. Success does not say that the kernel took it: it
    /// drops the socket silently while the old one still seems alive.
    pub fn replace_socket(
        &self,
        index: u32,
        backend: &str,
        peer: BorrowedFd<'_>,
    ) -> io::Result<()> {
        let mut message = Message::new(CMD_RECONFIGURE);
        message.index(index);
        message.text(ATTR_BACKEND_IDENTIFIER, backend);
        message.sockets(peer);
        self.call(message).map(drop)
    }

    /// Tells the kernel a new size of device `index`, in bytes. Waits until its I/O has ended.
    pub fn resize(&self, index: u32, backend: &str, size_bytes: u64) -> io::Result<()> {
        let mut message = Message::new(CMD_RECONFIGURE);
        message.index(index);
        message.text(ATTR_BACKEND_IDENTIFIER, backend);
        message.number(ATTR_SIZE_BYTES, size_bytes);
        self.call(message).map(drop)
    }

    /// Takes device `index` down, whoever uses it: what is queued fails with EIO.
    pub fn disconnect(&self, index: u32) -> io::Result<()> {
        let mut message = Message::new(CMD_DISCONNECT);
        message.index(index);
        self.call(message).map(drop)
    }

    /// Whether device `index` is configured. It may still have no live socket.
    pub fn is_configured(&self, index: u32) -> io::Result<bool> {
        let mut message = Message::new(CMD_STATUS);
        message.index(index);
        let reply = self.call(message)?;
        let connected = find(&reply, ATTR_DEVICE_LIST)
            .and_then(|list| find(list, DEVICE_ITEM))
            .and_then(|item| find(item, DEVICE_CONNECTED));
        Ok(connected.is_some_and(|value| value.first() == Some(&1)))
    }

    /// Sends one request and collects the attributes of its answer until the acknowledgement.
    fn call(&self, message: Message) -> io::Result<Vec<u8>> {
        let fd = self.socket.as_raw_fd();
        sendto(fd, &message.finish(self.family), &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
        let mut attributes = Vec::new();
        let mut buffer = vec![0; 16 * 1024];
        loop {
            let received = match recv(fd, &mut buffer, MsgFlags::empty()) {
                Err(Errno::EINTR) => continue,
                other => other?,
            };
            let mut rest = &buffer[..received];
            while let Some((kind, body, next)) = split_message(rest) {
                if kind == NLMSG_ERROR {
                    let code = body.get(..4).and_then(|bytes| bytes.try_into().ok());
                    return match code.map_or(-libc::EPROTO, i32::from_ne_bytes) {
                        0 => Ok(attributes),
                        code => Err(io::Error::from_raw_os_error(-code)),
                    };
                }
                // Behind the message header comes the generic one, of four bytes.
                attributes.extend_from_slice(body.get(4..).unwrap_or_default());
                rest = next;
            }
        }
    }
}

struct Message(Vec<u8>);

impl Message {
    fn new(command: u8) -> Self {
        let mut bytes = vec![0; HEADERS_BYTES];
        bytes[16] = command;
        bytes[17] = 1; // version of the family, both of ctrl and of nbd
        Self(bytes)
    }

    fn attribute(&mut self, number: u16, value: &[u8]) {
        let length = 4 + value.len();
        assert!(length <= usize::from(u16::MAX), "netlink attribute of {length} bytes");
        self.0.extend_from_slice(&(length as u16).to_ne_bytes());
        self.0.extend_from_slice(&number.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    fn number(&mut self, number: u16, value: u64) {
        self.attribute(number, &value.to_ne_bytes());
    }

    fn text(&mut self, number: u16, value: &str) {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.attribute(number, &bytes);
    }

    fn index(&mut self, index: u32) {
        self.attribute(ATTR_INDEX, &index.to_ne_bytes());
    }

    fn sockets(&mut self, peer: BorrowedFd<'_>) {
        let mut fd = Message(Vec::new());
        fd.attribute(SOCKET_FD, &(peer.as_raw_fd() as u32).to_ne_bytes());
        let mut item = Message(Vec::new());
        item.attribute(SOCKET_ITEM | NLA_F_NESTED, &fd.0);
        self.attribute(ATTR_SOCKETS | NLA_F_NESTED, &item.0);
    }

    fn finish(mut self, family: u16) -> Vec<u8> {
        let length = self.0.len() as u32;
        self.0[0..4].copy_from_slice(&length.to_ne_bytes());
        self.0[4..6].copy_from_slice(&family.to_ne_bytes());
        self.0[6..8].copy_from_slice(&(NLM_F_REQUEST | NLM_F_ACK).to_ne_bytes());
        self.0
    }
}

/// Splits the first netlink message off: its type, what follows its header, and the rest.
fn split_message(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?) as usize;
    let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
    let body = bytes.get(16..length)?;
    let next = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((kind, body, next))
}

/// The value of the first attribute with this number.
fn find(mut attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let length = u16::from_ne_bytes(attributes.get(..2)?.try_into().ok()?) as usize;
        let number = u16::from_ne_bytes(attributes.get(2..4)?.try_into().ok()?);
        let value = attributes.get(4..length)?;
        if number & NLA_TYPE_MASK == wanted {
            return Some(value);
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attribute_that_was_written_is_found_again() {
        let mut message = Message(Vec::new());
        message.text(ATTR_BACKEND_IDENTIFIER, "abc");
        message.number(ATTR_SIZE_BYTES, 7);
        assert_eq!(find(&message.0, ATTR_SIZE_BYTES), Some(7u64.to_ne_bytes().as_slice()));
        assert_eq!(find(&message.0, ATTR_BACKEND_IDENTIFIER), Some(b"abc\0".as_slice()));
        assert_eq!(find(&message.0, ATTR_INDEX), None);
    }

    #[test]
    fn cut_or_nonsensical_answers_end_the_search() {
        let mut message = Message(Vec::new());
        message.number(ATTR_SIZE_BYTES, 7);
        for end in 0..message.0.len() {
            assert_eq!(find(&message.0[..end], ATTR_SIZE_BYTES), None);
        }
        assert_eq!(find(&[0; 64], ATTR_SIZE_BYTES), None);
        assert!(split_message(&[0xff; 64]).is_none());
        assert!(split_message(&[0; 64]).is_none());
    }
}
