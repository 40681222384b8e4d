//! Frames that tell a network who has an address, and ask it: ARP (RFC 826, 5227) and neighbour
//! discovery (RFC 4861), as bytes. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::netlink::Mac;

const BROADCAST: Mac = Mac([0xff; 6]);
const ETHER_HEADER: usize = 14;
const ETHER_IPV4: [u8; 2] = [0x08, 0x00];
const ETHER_ARP: [u8; 2] = [0x08, 0x06];
const ETHER_IPV6: [u8; 2] = [0x86, 0xdd];
/// The shortest frame; what is shorter is filled up with zeroes.
const FRAME_BYTES_MIN: usize = 60;

const ARP_REQUEST: u8 = 1;
const ARP_REPLY: u8 = 2;

const NEXT_ICMPV6: u8 = 58;
const IPV6_HEADER: usize = 40;
const ECHO_REQUEST: u8 = 8;
const ECHO_REPLY: u8 = 0;
const ECHO_REQUEST_V6: u8 = 128;
const ECHO_REPLY_V6: u8 = 129;
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
/// Neighbour discovery is only believed from the link itself.
const HOP_LIMIT: u8 = 255;
const OPTION_SOURCE_LINK: u8 = 1;
const OPTION_TARGET_LINK: u8 = 2;
const NA_OVERRIDE: u8 = 0x20;
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// What a frame says about an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Claim {
    /// The address.
    pub address: IpAddr,
    /// Who has it, or is about to take it.
    pub mac: Mac,
}

/// The frames that announce that `mac` has `address`. For IPv4 a request and a reply, since some
/// network equipment believes only one of them; for IPv6 an unsolicited advertisement.
pub fn announcement(address: IpAddr, mac: Mac) -> Vec<Vec<u8>> {
    match address {
        IpAddr::V4(address) => vec![
            arp(ARP_REQUEST, (mac, address), (BROADCAST, address), BROADCAST),
            // Linux takes a reply for gratuitous only when both hardware addresses are the same.
            arp(ARP_REPLY, (mac, address), (mac, address), BROADCAST),
        ],
        IpAddr::V6(address) => {
            let mut body = vec![ADVERTISEMENT, 0, 0, 0, NA_OVERRIDE, 0, 0, 0];
            body.extend(address.octets());
            body.extend([OPTION_TARGET_LINK, 1]);
            body.extend(mac.0);
            vec![icmpv6(mac, address, ALL_NODES, body)]
        }
    }
}

/// The frame that asks whether somebody has `address`, without saying that we have one.
pub fn probe(address: IpAddr, mac: Mac) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => {
            let nobody = Mac([0; 6]);
            arp(ARP_REQUEST, (mac, Ipv4Addr::UNSPECIFIED), (nobody, address), BROADCAST)
        }
        IpAddr::V6(address) => {
            let mut body = vec![SOLICITATION, 0, 0, 0, 0, 0, 0, 0];
            body.extend(address.octets());
            icmpv6(mac, Ipv6Addr::UNSPECIFIED, solicited_node(address), body)
        }
    }
}

/// The frame that asks for the hardware address of `address`, from one of ours.
pub fn solicitation(address: IpAddr, from: IpAddr, mac: Mac) -> Option<Vec<u8>> {
    match (address, from) {
        (IpAddr::V4(address), IpAddr::V4(from)) => {
            Some(arp(ARP_REQUEST, (mac, from), (Mac([0; 6]), address), BROADCAST))
        }
        (IpAddr::V6(address), IpAddr::V6(from)) => {
            let mut body = vec![SOLICITATION, 0, 0, 0, 0, 0, 0, 0];
            body.extend(address.octets());
            body.extend([OPTION_SOURCE_LINK, 1]);
            body.extend(mac.0);
            Some(icmpv6(mac, from, solicited_node(address), body))
        }
        _ => None,
    }
}

/// What a received frame says of who has an address: ARP of any kind, an advertisement, or the
/// question of somebody who is about to take it (duplicate address detection).
pub fn claim(frame: &[u8]) -> Option<Claim> {
    let source = Mac(frame.get(6..12)?.try_into().ok()?);
    let rest = frame.get(ETHER_HEADER..)?;
    match frame.get(12..14)?.try_into().ok()? {
        ETHER_ARP => arp_claim(rest),
        ETHER_IPV6 => icmpv6_claim(source, rest),
        _ => None,
    }
}

fn arp(
    operation: u8,
    (sender_mac, sender): (Mac, Ipv4Addr),
    (target_mac, target): (Mac, Ipv4Addr),
    to: Mac,
) -> Vec<u8> {
    let mut frame = ethernet(to, sender_mac, ETHER_ARP);
    // Ethernet and IPv4, addresses of 6 and 4 bytes.
    frame.extend([0, 1, ETHER_IPV4[0], ETHER_IPV4[1], 6, 4, 0, operation]);
    frame.extend(sender_mac.0);
    frame.extend(sender.octets());
    frame.extend(target_mac.0);
    frame.extend(target.octets());
    frame.resize(FRAME_BYTES_MIN, 0);
    frame
}

fn arp_claim(packet: &[u8]) -> Option<Claim> {
    if packet.get(0..6)? != [0, 1, ETHER_IPV4[0], ETHER_IPV4[1], 6, 4] {
        return None;
    }
    let mac = Mac(packet.get(8..14)?.try_into().ok()?);
    let sender = Ipv4Addr::from(<[u8; 4]>::try_from(packet.get(14..18)?).ok()?);
    let target = Ipv4Addr::from(<[u8; 4]>::try_from(packet.get(24..28)?).ok()?);
    // A probe (RFC 5227): its sender is about to take the target.
    let is_probe = sender.is_unspecified() && packet.get(7)? == &ARP_REQUEST;
    let address = if is_probe { target } else { sender };
    (!address.is_unspecified()).then_some(Claim { address: address.into(), mac })
}

fn icmpv6(mac: Mac, from: Ipv6Addr, to: Ipv6Addr, mut body: Vec<u8>) -> Vec<u8> {
    let sum = checksum(from, to, &body);
    body[2..4].copy_from_slice(&sum.to_be_bytes());
    let [.., a, b, c, d] = to.octets();
    let mut frame = ethernet(Mac([0x33, 0x33, a, b, c, d]), mac, ETHER_IPV6);
    frame.extend([0x60, 0, 0, 0]);
    frame.extend((body.len() as u16).to_be_bytes());
    frame.extend([NEXT_ICMPV6, HOP_LIMIT]);
    frame.extend(from.octets());
    frame.extend(to.octets());
    frame.extend(body);
    frame
}

fn icmpv6_claim(source: Mac, packet: &[u8]) -> Option<Claim> {
    if packet.get(6..8)? != [NEXT_ICMPV6, HOP_LIMIT] {
        return None;
    }
    let from = Ipv6Addr::from(<[u8; 16]>::try_from(packet.get(8..24)?).ok()?);
    let body = packet.get(IPV6_HEADER..)?;
    let target = Ipv6Addr::from(<[u8; 16]>::try_from(body.get(8..24)?).ok()?);
    let address = IpAddr::V6(target);
    match *body.first()? {
        ADVERTISEMENT => {
            let mac = link_option(body.get(24..)?, OPTION_TARGET_LINK).unwrap_or(source);
            Some(Claim { address, mac })
        }
        SOLICITATION if from.is_unspecified() => Some(Claim { address, mac: source }),
        _ => None,
    }
}

fn link_option(mut options: &[u8], wanted: u8) -> Option<Mac> {
    while let [kind, units, ..] = *options {
        let bytes = usize::from(units) * 8;
        let option = options.get(..bytes).filter(|_| bytes > 0)?;
        if kind == wanted {
            return Some(Mac(option.get(2..8)?.try_into().ok()?));
        }
        options = &options[bytes..];
    }
    None
}

fn ethernet(to: Mac, from: Mac, kind: [u8; 2]) -> Vec<u8> {
    [to.0.as_slice(), &from.0, &kind].concat()
}

/// The group that everybody with this address listens to.
fn solicited_node(address: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = address.octets();
    let low = (u16::from(b) << 8) | u16::from(c);
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(a), low)
}

fn checksum(from: Ipv6Addr, to: Ipv6Addr, body: &[u8]) -> u16 {
    let length = (body.len() as u32).to_be_bytes();
    let whole = [&from.octets()[..], &to.octets(), &length, &[0, 0, 0, NEXT_ICMPV6], body].concat();
    internet_checksum(&whole)
}

/// RFC 1071.
pub fn internet_checksum(bytes: &[u8]) -> u16 {
    let word = |pair: &[u8]| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
    let mut sum: u32 = bytes.chunks(2).map(word).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// An ICMP echo request for a raw socket; `number` tells its answer from all others.
pub fn echo_request(to: IpAddr, number: u32) -> Vec<u8> {
    let kind = if to.is_ipv4() { ECHO_REQUEST } else { ECHO_REQUEST_V6 };
    let mut body = vec![kind, 0, 0, 0];
    body.extend(number.to_be_bytes());
    body.extend(*b"replicator reach");
    // For ICMPv6 the kernel does that, which knows the sender.
    let sum = internet_checksum(&body);
    body[2..4].copy_from_slice(&sum.to_be_bytes());
    body
}

/// Whether this is the answer to the echo request of that number, as a raw socket gives it: with
/// its IP header for IPv4, without one for IPv6.
pub fn is_echo_reply(is_ipv4: bool, packet: &[u8], number: u32) -> bool {
    let header_bytes =
        if is_ipv4 { packet.first().map_or(0, |it| usize::from(it & 15) * 4) } else { 0 };
    let Some(body) = packet.get(header_bytes..) else { return false };
    let kind = if is_ipv4 { ECHO_REPLY } else { ECHO_REPLY_V6 };
    body.first() == Some(&kind) && body.get(4..8) == Some(&number.to_be_bytes())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MAC: Mac = Mac([2, 0, 0, 0, 0, 9]);

    #[test]
    fn a_gratuitous_arp_is_a_request_and_a_reply_to_everybody() {
        let address: IpAddr = "192.0.2.100".parse().unwrap();
        let frames = announcement(address, MAC);
        let operations: Vec<u8> = frames.iter().map(|frame| frame[21]).collect();
        assert_eq!(operations, [ARP_REQUEST, ARP_REPLY]);
        for frame in &frames {
            assert_eq!(&frame[..6], &[0xff; 6]);
            assert_eq!(frame.len(), FRAME_BYTES_MIN);
            assert_eq!(&frame[28..32], &frame[38..42], "sender and target are one address");
            assert_eq!(claim(frame), Some(Claim { address, mac: MAC }));
        }
        assert_eq!(&frames[1][22..28], &frames[1][32..38], "a reply with one hardware address");
    }

    #[test]
    fn an_advertisement_has_a_checksum_that_fits_and_overrides() {
        let address: IpAddr = "2001:db8::100".parse().unwrap();
        let frames = announcement(address, MAC);
        let [frame] = &frames[..] else { panic!("one frame") };
        assert_eq!(&frame[..6], &[0x33, 0x33, 0, 0, 0, 1]);
        assert_eq!(frame[ETHER_HEADER + 7], HOP_LIMIT);
        let body = &frame[ETHER_HEADER + IPV6_HEADER..];
        assert_eq!(body[4] & NA_OVERRIDE, NA_OVERRIDE);
        let (from, to) = (&frame[22..38], &frame[38..54]);
        let parse = |octets: &[u8]| Ipv6Addr::from(<[u8; 16]>::try_from(octets).unwrap());
        assert_eq!(checksum(parse(from), parse(to), body), 0, "summed with its own checksum");
        assert_eq!(claim(frame), Some(Claim { address, mac: MAC }));
    }

    #[test]
    fn a_probe_names_no_sender_and_is_a_claim_of_who_asks() {
        for text in ["192.0.2.100", "2001:db8::1:2:3"] {
            let address: IpAddr = text.parse().unwrap();
            assert_eq!(claim(&probe(address, MAC)), Some(Claim { address, mac: MAC }));
        }
        let frame = probe("2001:db8::1:2:3".parse().unwrap(), MAC);
        assert_eq!(&frame[..6], &[0x33, 0x33, 0xff, 2, 0, 3]);
        assert_eq!(&probe("192.0.2.100".parse().unwrap(), MAC)[28..32], &[0; 4]);
    }

    #[test]
    fn an_ordinary_question_claims_only_the_address_of_who_asks() {
        let (mine, other) = ("192.0.2.1".parse().unwrap(), "192.0.2.100".parse().unwrap());
        let frame = solicitation(other, mine, MAC).unwrap();
        assert_eq!(claim(&frame), Some(Claim { address: mine, mac: MAC }));
        let (mine, other) = ("2001:db8::1".parse().unwrap(), "2001:db8::100".parse().unwrap());
        assert_eq!(claim(&solicitation(other, mine, MAC).unwrap()), None);
    }

    proptest! {
        #[test]
        fn no_frame_panics(bytes in proptest::collection::vec(any::<u8>(), 0..120)) {
            let _ = claim(&bytes);
        }

        #[test]
        fn no_packet_panics(
            arp in any::<bool>(),
            icmp in any::<bool>(),
            bytes in proptest::collection::vec(any::<u8>(), 0..120),
        ) {
            let mut frame = ethernet(MAC, MAC, if arp { ETHER_ARP } else { ETHER_IPV6 });
            frame.extend(&bytes);
            if icmp && frame.len() > ETHER_HEADER + IPV6_HEADER {
                frame[ETHER_HEADER + 6] = NEXT_ICMPV6;
                frame[ETHER_HEADER + 7] = HOP_LIMIT;
                frame[ETHER_HEADER + IPV6_HEADER] = ADVERTISEMENT;
            }
            let _ = claim(&frame);
            let _ = is_echo_reply(arp, &bytes, 7);
        }
    }
}
