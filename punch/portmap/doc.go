// Package portmap asks the gateway of the local network to forward a public UDP port to this host, so that peers can
// reach it without punching: by PCP, NAT-PMP or UPnP, in this order of preference.
//
// PCP, 60 bytes each way on UDP port 5351 of the gateway. An answer counts only with our nonce and port:
//
//	request                                         response
//	| ver 2 | op 1 |   reserved    |                | ver 2 | 0x81 | rsv | result |
//	|       lifetime, seconds      |                |      lifetime, seconds      |
//	|  our address, 16             |                | epoch, s | reserved, 12     |
//	|  nonce, 12                   |                |  nonce, 12                  |
//	| proto 17 |     reserved, 3   |                | proto 17 |    reserved, 3   |
//	| port here    | port outside  |                | port here   | port outside  |
//	|  address outside, 16         |                |  address outside, 16        |
//
// NAT-PMP, on the same port. The address is asked for first:
//
//	| 0 | op 0 |                                    | 0 | 0x80 | result | epoch, s | address, 4 |
//	| 0 | op 1 | rsv | port here | port wanted |    | 0 | 0x81 | result | epoch, s |
//	|     lifetime, seconds      |                  | port here | port outside | lifetime, seconds |
//
// UPnP: a search by UDP (SSDP, port 1900), then a description and calls by HTTP and XML (SOAP).
//
// A [Mapper] keeps one mapping while it lives. It asks for half an hour and renews at half life, so that what a crash
// leaves behind is gone soon. A gateway that lost its mappings shows it by its epoch, the seconds since it started: in
// the answers, and in the announcements that it multicasts; both lead to a renewal. The port asked for outside is
// the local one, or the one had before.
//
// # What a gateway cannot do
//
// A gateway, or what poses as one, can name a false address: whoever connects there must prove its key, so nothing is
// lost but the try. Answers count only from the gateway's own address, a search result or description may lead nowhere
// else, no redirect is followed, every body and the number of datagrams looked at are bounded, and whatever it says,
// it is asked at most once a second, and no more than a dozen times a minute on the average.
//
// Sources: RFC 6887 (PCP), RFC 6886 (NAT-PMP), UPnP Device Architecture 1.1, WANIPConnection:1 and :2.
//
// # Limitations
//
//   - One mapping, of one UDP port, at the gateway of the default route.
//   - If the gateway is itself behind a NAT the mapping is kept, because it widens the gateway's filter, but
//     [Mapper.External] has nothing to give.
//   - A host with a public IPv4 address asks nobody, though there may be a filter before it: searches are not welcome in
//     the networks of data centres.
//   - With an IPv6 gateway only PCP is asked, which then opens its firewall. Announcements are heard over IPv4 only.
//   - UPnP tells no epoch: that a gateway restarted is seen at the next renewal or [Mapper.Refresh].
//   - UPnP devices that answer a search from, or place their description at, another address than the gateway's own are
//     not used.
package portmap
