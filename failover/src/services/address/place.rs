//! On which link an address belongs, and what of it is there already. Pure: from what the kernel
//! says to a choice, or to why there is none.

use super::AddressConfig;
use crate::netlink::{AddressRecord, Link, Place};
use crate::services::Failure;

/// Where the address is to be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Choice {
    /// The link.
    pub link: Link,
    /// The address there.
    pub place: Place,
    /// Whether another address makes the route to the network.
    pub has_route: bool,
    /// Whether it is there already.
    pub is_there: bool,
    /// Where else it is, or with another prefix.
    pub misplaced: Vec<Place>,
}

/// Chooses.
pub fn choose(
    config: &AddressConfig,
    links: &[Link],
    addresses: &[AddressRecord],
) -> Result<Choice, Failure> {
    let link = match &config.interface {
        Some(name) => named(name, links)?,
        None => of_network(config, links, addresses)?,
    };
    let place = Place { index: link.index, address: config.address, prefix: config.prefix };
    let own = places(config, links, addresses);
    let (there, misplaced): (Vec<Place>, Vec<Place>) = own.into_iter().partition(|it| *it == place);
    let has_route = addresses.iter().any(|it| {
        let other = &it.place;
        other.index == link.index
            && other.address != config.address
            && other.is_same_network(&place)
    });
    Ok(Choice { link: link.clone(), place, has_route, is_there: !there.is_empty(), misplaced })
}

/// Every place where the address is, but on the loopback: load balancers want it there.
pub fn places(config: &AddressConfig, links: &[Link], addresses: &[AddressRecord]) -> Vec<Place> {
    let is_loopback =
        |place: &Place| links.iter().any(|link| link.index == place.index && link.is_loopback);
    let own = addresses.iter().map(|record| record.place);
    own.filter(|place| place.address == config.address && !is_loopback(place)).collect()
}

fn named<'a>(name: &str, links: &'a [Link]) -> Result<&'a Link, Failure> {
    links.iter().find(|link| link.name == *name).ok_or_else(|| {
        let known: Vec<&str> = links.iter().map(|link| link.name.as_str()).collect();
        failure(
            "no_interface",
            format!("this machine has no interface {name}; it has {}", known.join(", ")),
            "correct `interface`, or leave it out: the one with an address of the same network \
             is taken then",
        )
    })
}

/// The link whose own address has the longest prefix that covers ours.
fn of_network<'a>(
    config: &AddressConfig,
    links: &'a [Link],
    addresses: &[AddressRecord],
) -> Result<&'a Link, Failure> {
    let covering = addresses
        .iter()
        .map(|record| &record.place)
        .filter(|place| place.address != config.address && place.covers(config.address));
    let of = |place: &Place| links.iter().find(|link| link.index == place.index);
    let best = covering
        .filter_map(|place| Some((place.prefix, of(place)?)))
        .filter(|(_, link)| !link.is_loopback)
        // Of several the first one, so that the choice does not change from time to time.
        .min_by_key(|(prefix, link)| (u8::MAX - prefix, link.index));
    best.map(|(_, link)| link).ok_or_else(|| {
        failure(
            "no_network",
            format!("no interface of this machine has an address of the network of {config}"),
            "write interface = \"NAME\" beside the address, or give an interface an address of \
             its network",
        )
    })
}

/// A failure that may be over when it is tried again.
pub fn failure(code: &str, why: String, next: &str) -> Failure {
    Failure { code: code.into(), why, next: next.into(), is_permanent: false }
}

#[cfg(test)]
mod tests {
    use failover_core::Span;

    use super::super::LeaseLength;
    use super::*;

    fn link(index: u32, name: &str) -> Link {
        Link {
            index,
            name: name.into(),
            mac: None,
            is_up: true,
            has_carrier: true,
            is_loopback: name == "lo",
            is_noarp: false,
        }
    }

    fn record(index: u32, text: &str) -> AddressRecord {
        let (address, prefix) = text.split_once('/').unwrap();
        let address = address.parse().unwrap();
        let place = Place { index, address, prefix: prefix.parse().unwrap() };
        AddressRecord { place, is_permanent: true }
    }

    fn config(text: &str, interface: Option<&str>) -> AddressConfig {
        let AddressRecord { place, .. } = record(0, text);
        AddressConfig {
            resource: "demo".into(),
            address: place.address,
            prefix: place.prefix,
            interface: interface.map(str::to_owned),
            is_source: true,
            lease: LeaseLength::new(Span::from_ms(1_000)),
            peers: Vec::new(),
        }
    }

    fn links() -> Vec<Link> {
        vec![link(1, "lo"), link(2, "eth0"), link(3, "eth1")]
    }

    #[test]
    fn the_link_of_the_same_network_is_taken_the_narrowest_first() {
        let addresses = [
            record(1, "127.0.0.1/8"),
            record(2, "192.0.0.7/8"),
            record(3, "192.0.2.7/24"),
            record(2, "2001:db8::7/64"),
        ];
        let chosen = choose(&config("192.0.2.100/24", None), &links(), &addresses).unwrap();
        assert_eq!((chosen.link.name.as_str(), chosen.has_route), ("eth1", true));
        let chosen = choose(&config("192.9.2.100/32", None), &links(), &addresses).unwrap();
        assert_eq!((chosen.link.name.as_str(), chosen.has_route), ("eth0", false));
        let chosen = choose(&config("2001:db8::100/64", None), &links(), &addresses).unwrap();
        assert_eq!((chosen.link.name.as_str(), chosen.has_route), ("eth0", true));
        let refused = choose(&config("10.0.0.1/24", None), &links(), &addresses).unwrap_err();
        assert_eq!(refused.code, "no_network");
    }

    #[test]
    fn the_address_itself_names_no_network_and_is_adopted_where_it_is() {
        let mut addresses = vec![record(3, "192.0.2.100/24")];
        let wanted = config("192.0.2.100/24", None);
        assert_eq!(choose(&wanted, &links(), &addresses).unwrap_err().code, "no_network");
        addresses.push(record(3, "192.0.2.7/24"));
        let chosen = choose(&wanted, &links(), &addresses).unwrap();
        assert!(chosen.is_there && chosen.misplaced.is_empty());
        let elsewhere = choose(&config("192.0.2.100/24", Some("eth0")), &links(), &addresses);
        let elsewhere = elsewhere.unwrap();
        assert!(!elsewhere.is_there);
        assert_eq!(elsewhere.misplaced, [addresses[0].place]);
    }

    #[test]
    fn the_loopback_may_keep_the_address() {
        let addresses = [record(1, "192.0.2.100/32"), record(2, "192.0.2.7/24")];
        let chosen = choose(&config("192.0.2.100/24", None), &links(), &addresses).unwrap();
        assert!(!chosen.is_there && chosen.misplaced.is_empty());
    }

    #[test]
    fn an_unknown_interface_is_refused_with_those_there_are() {
        let refused = choose(&config("192.0.2.100/24", Some("eht0")), &links(), &[]).unwrap_err();
        assert_eq!(refused.code, "no_interface");
        assert!(refused.why.contains("lo, eth0, eth1"), "{}", refused.why);
    }

    #[test]
    fn every_prefix_length_has_a_mask() {
        let same =
            |one: &str, other: &str| record(1, one).place.is_same_network(&record(1, other).place);
        assert!(same("0.0.0.0/0", "255.255.255.255/0"));
        assert!(same("192.0.2.1/32", "192.0.2.1/32") && !same("192.0.2.1/32", "192.0.2.2/32"));
        assert!(same("::/0", "ffff::/0") && !same("::1/128", "::2/128"));
        assert!(!same("::/0", "0.0.0.0/0"));
    }
}
