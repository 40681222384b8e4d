//! The bytes of route netlink: a header, a fixed part, and attributes of `{u16 length, u16 number,
//! bytes}`, each padded to four bytes, in native order.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{Life, Place};

pub(super) mod kind {
    pub const ERROR: u16 = 2;
    pub const DONE: u16 = 3;
    pub const NEW_LINK: u16 = 16;
    pub const DELETE_LINK: u16 = 17;
    pub const GET_LINK: u16 = 18;
    pub const NEW_ADDRESS: u16 = 20;
    pub const DELETE_ADDRESS: u16 = 21;
    pub const GET_ADDRESS: u16 = 22;
    pub const NEW_NEIGHBOUR: u16 = 28;
    pub const GET_NEIGHBOUR: u16 = 30;
}

pub(super) mod flag {
    pub const REQUEST: u16 = 1;
    pub const ACK: u16 = 4;
    /// In an answer: the dump is not of one moment.
    pub const INTERRUPTED: u16 = 0x10;
    pub const REPLACE: u16 = 0x100;
    pub const CREATE: u16 = 0x400;
    pub const DUMP: u16 = 0x300;
}

const HEADER_BYTES: usize = 16;
const ATTRIBUTE_BYTES: usize = 4;
const ATTRIBUTE_NUMBER: u16 = 0x3fff;
/// The longest request: an IPv6 address with everything.
const REQUEST_BYTES_MAX: usize = 128;

const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_BROADCAST: u16 = 4;
const IFA_CACHEINFO: u16 = 6;
const IFA_FLAGS: u16 = 8;
const IFA_F_NODAD: u32 = 0x02;
const IFA_F_PERMANENT: u32 = 0x80;
const IFA_F_NOPREFIXROUTE: u32 = 0x200;
const SCOPE_UNIVERSE: u8 = 0;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;

const IFF_UP: u32 = 1;
const IFF_LOOPBACK: u32 = 8;
const IFF_RUNNING: u32 = 0x40;
const IFF_NOARP: u32 = 0x80;

/// An Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, f] = self.0;
        write!(out, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
    }
}

/// An address that the machine has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AddressRecord {
    /// Where.
    pub place: Place,
    /// Whether it stays until somebody removes it.
    pub is_permanent: bool,
}

/// A network interface.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Link {
    /// Its number.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its hardware address; none where there is no Ethernet.
    pub mac: Option<Mac>,
    /// Whether it was set up.
    pub is_up: bool,
    /// Whether it has a carrier.
    pub has_carrier: bool,
    /// Whether it is the loopback.
    pub is_loopback: bool,
    /// Whether nobody asks for addresses there.
    pub is_noarp: bool,
}

impl Link {
    /// Whether packets can pass.
    pub fn works(&self) -> bool {
        self.is_up && self.has_carrier
    }
}

/// Somebody on a link.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Neighbour {
    /// His address.
    pub address: IpAddr,
    /// His hardware address.
    pub mac: Mac,
}

/// Something changed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// An address was added, or its life changed.
    AddressThere(AddressRecord),
    /// An address is gone.
    AddressGone(AddressRecord),
    /// A link is there, or changed.
    LinkThere(Link),
    /// A link is gone.
    LinkGone(Link),
    /// There was more than could be noted: look at everything again.
    Missed,
}

/// A request that is being written, in a buffer of its own.
pub(super) struct Builder {
    bytes: [u8; REQUEST_BYTES_MAX],
    length: usize,
}

impl Builder {
    fn new(kind: u16, flags: u16, sequence: u32) -> Self {
        let mut builder = Self { bytes: [0; REQUEST_BYTES_MAX], length: HEADER_BYTES };
        builder.bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        builder.bytes[6..8].copy_from_slice(&(flags | flag::REQUEST).to_ne_bytes());
        builder.bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        builder
    }

    /// Asks for everything of a kind.
    pub fn dump(kind: u16, sequence: u32, header_bytes: usize) -> Self {
        let mut builder = Self::new(kind, flag::DUMP, sequence);
        builder.length += header_bytes;
        builder
    }

    /// About one address.
    pub fn address(kind: u16, flags: u16, sequence: u32, place: &Place) -> Self {
        let mut builder = Self::new(kind, flags, sequence);
        let family = match place.address {
            IpAddr::V4(_) => libc::AF_INET,
            IpAddr::V6(_) => libc::AF_INET6,
        };
        builder.put(&[family as u8, place.prefix, 0, SCOPE_UNIVERSE]);
        builder.put(&place.index.to_ne_bytes());
        match place.address {
            IpAddr::V4(address) => builder.local(&address.octets()),
            IpAddr::V6(address) => builder.local(&address.octets()),
        }
        builder
    }

    fn local(&mut self, octets: &[u8]) {
        self.attribute(IFA_LOCAL, octets);
        self.attribute(IFA_ADDRESS, octets);
    }

    pub fn broadcast(&mut self, address: Ipv4Addr) {
        self.attribute(IFA_BROADCAST, &address.octets());
    }

    pub fn life(&mut self, life: Life, has_route: bool) {
        let preferred_s = if life.is_source { life.valid_s } else { 0 };
        let mut cache = [0; 16];
        cache[0..4].copy_from_slice(&preferred_s.to_ne_bytes());
        cache[4..8].copy_from_slice(&life.valid_s.to_ne_bytes());
        self.attribute(IFA_CACHEINFO, &cache);
        // Whose the address is, the lease says: nobody else is asked.
        let route = if has_route { IFA_F_NOPREFIXROUTE } else { 0 };
        self.attribute(IFA_FLAGS, &(IFA_F_NODAD | route).to_ne_bytes());
    }

    fn attribute(&mut self, number: u16, value: &[u8]) {
        let length = (ATTRIBUTE_BYTES + value.len()) as u16;
        self.put(&length.to_ne_bytes());
        self.put(&number.to_ne_bytes());
        self.put(value);
        self.length = self.length.next_multiple_of(4);
    }

    fn put(&mut self, bytes: &[u8]) {
        self.bytes[self.length..self.length + bytes.len()].copy_from_slice(bytes);
        self.length += bytes.len();
    }

    pub fn finish(&mut self) -> &[u8] {
        let length = self.length as u32;
        self.bytes[0..4].copy_from_slice(&length.to_ne_bytes());
        &self.bytes[..self.length]
    }
}

/// The messages of one receive.
pub(super) struct Messages<'a> {
    rest: &'a [u8],
}

impl<'a> Messages<'a> {
    pub fn new(rest: &'a [u8]) -> Self {
        Self { rest }
    }
}

impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;

    fn next(&mut self) -> Option<Message<'a>> {
        let length = number_u32(self.rest, 0)? as usize;
        let body = self.rest.get(HEADER_BYTES..length)?;
        let message = Message {
            kind: number_u16(self.rest, 4)?,
            flags: number_u16(self.rest, 6)?,
            sequence: number_u32(self.rest, 8)?,
            body,
        };
        self.rest = self.rest.get(length.next_multiple_of(4)..).unwrap_or(&[]);
        Some(message)
    }
}

/// One message of the kernel.
pub(super) struct Message<'a> {
    pub kind: u16,
    pub sequence: u32,
    flags: u16,
    body: &'a [u8],
}

impl Message<'_> {
    pub fn is_interrupted(&self) -> bool {
        self.flags & flag::INTERRUPTED != 0
    }

    /// What the kernel says of a request.
    pub fn verdict(&self) -> io::Result<()> {
        match number_u32(self.body, 0).map(|code| code as i32) {
            Some(0) => Ok(()),
            Some(code) => Err(io::Error::from_raw_os_error(-code)),
            None => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    pub fn address(&self) -> Option<AddressRecord> {
        if !matches!(self.kind, kind::NEW_ADDRESS | kind::DELETE_ADDRESS) {
            return None;
        }
        let &[family, prefix, short_flags, _] = self.body.first_chunk()?;
        let index = number_u32(self.body, 4)?;
        let (mut local, mut address, mut flags) = (None, None, u32::from(short_flags));
        for (number, value) in attributes(self.body.get(8..)?) {
            match number {
                IFA_LOCAL => local = ip(family, value),
                IFA_ADDRESS => address = ip(family, value),
                IFA_FLAGS => flags = number_u32(value, 0)?,
                _ => {}
            }
        }
        let place = Place { index, address: local.or(address)?, prefix };
        Some(AddressRecord { place, is_permanent: flags & IFA_F_PERMANENT != 0 })
    }

    pub fn link(&self) -> Option<Link> {
        if !matches!(self.kind, kind::NEW_LINK | kind::DELETE_LINK) {
            return None;
        }
        let index = number_u32(self.body, 4)?;
        let flags = number_u32(self.body, 8)?;
        let (mut name, mut mac) = (None, None);
        for (number, value) in attributes(self.body.get(16..)?) {
            match number {
                IFLA_IFNAME => {
                    let text = value.split(|byte| *byte == 0).next().unwrap_or_default();
                    name = Some(String::from_utf8_lossy(text).into_owned());
                }
                IFLA_ADDRESS => mac = value.try_into().ok().map(Mac),
                _ => {}
            }
        }
        Some(Link {
            index,
            name: name?,
            mac,
            is_up: flags & IFF_UP != 0,
            has_carrier: flags & IFF_RUNNING != 0,
            is_loopback: flags & IFF_LOOPBACK != 0,
            is_noarp: flags & IFF_NOARP != 0,
        })
    }

    pub fn neighbour(&self) -> Option<Neighbour> {
        if self.kind != kind::NEW_NEIGHBOUR {
            return None;
        }
        let family = *self.body.first()?;
        let (mut address, mut mac) = (None, None);
        for (number, value) in attributes(self.body.get(12..)?) {
            match number {
                NDA_DST => address = ip(family, value),
                NDA_LLADDR => mac = value.try_into().ok().map(Mac),
                _ => {}
            }
        }
        Some(Neighbour { address: address?, mac: mac? })
    }

    pub fn event(&self) -> Option<Event> {
        match self.kind {
            kind::NEW_ADDRESS => self.address().map(Event::AddressThere),
            kind::DELETE_ADDRESS => self.address().map(Event::AddressGone),
            kind::NEW_LINK => self.link().map(Event::LinkThere),
            kind::DELETE_LINK => self.link().map(Event::LinkGone),
            _ => None,
        }
    }
}

fn attributes(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(number_u16(rest, 0)?);
        let number = number_u16(rest, 2)? & ATTRIBUTE_NUMBER;
        let value = rest.get(ATTRIBUTE_BYTES..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or(&[]);
        Some((number, value))
    })
}

fn ip(family: u8, value: &[u8]) -> Option<IpAddr> {
    match i32::from(family) {
        libc::AF_INET => Some(Ipv4Addr::from(<[u8; 4]>::try_from(value).ok()?).into()),
        libc::AF_INET6 => Some(Ipv6Addr::from(<[u8; 16]>::try_from(value).ok()?).into()),
        _ => None,
    }
}

fn number_u16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn number_u32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn record(address: &str, prefix: u8) -> AddressRecord {
        let place = Place { index: 7, address: address.parse().unwrap(), prefix };
        AddressRecord { place, is_permanent: false }
    }

    #[test]
    fn what_is_asked_for_is_what_the_kernel_would_read() {
        for wanted in [record("192.0.2.100", 24), record("2001:db8::100", 64)] {
            let flags = flag::ACK | flag::CREATE | flag::REPLACE;
            let mut builder = Builder::address(kind::NEW_ADDRESS, flags, 3, &wanted.place);
            builder.broadcast(Ipv4Addr::new(192, 0, 2, 255));
            builder.life(Life { valid_s: 1, is_source: false }, true);
            let bytes = builder.finish().to_vec();
            let message = Messages::new(&bytes).next().expect("one message");
            assert_eq!((message.kind, message.sequence), (kind::NEW_ADDRESS, 3));
            assert_eq!(message.address(), Some(wanted));
            let cache = attributes(&message.body[8..]).find(|(number, _)| *number == IFA_CACHEINFO);
            let (_, cache) = cache.expect("a life");
            assert_eq!((number_u32(cache, 0), number_u32(cache, 4)), (Some(0), Some(1)));
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            for message in Messages::new(&bytes) {
                let _ = (message.address(), message.link(), message.neighbour(), message.event());
            }
        }

        #[test]
        fn no_body_panics(
            body in proptest::collection::vec(any::<u8>(), 0..120),
            kind in 16u16..31,
        ) {
            let mut bytes = vec![0; HEADER_BYTES];
            bytes.extend(&body);
            let length = bytes.len() as u32;
            bytes[0..4].copy_from_slice(&length.to_ne_bytes());
            bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
            for message in Messages::new(&bytes) {
                let _ = (message.address(), message.link(), message.neighbour(), message.event());
            }
        }
    }
}
