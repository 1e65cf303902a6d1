package portmap

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"time"

	"golang.org/x/net/ipv4"
)

const (
	ssdpPort = 1900
	// maxSSDP is the longest datagram looked at, maxLocation the longest URL in it.
	maxSSDP     = 2048
	maxLocation = 512
	// maxLocations is how many descriptions one search reads.
	maxLocations = 4
)

// errNotFound is the error for datagrams that are not replies to a search.
var errNotFound = errors.New("not a reply to a search")

// searches are sent to everybody and to the gateway alone: some gateways hear only one of them, and a firewall of this
// host lets only the answer to the second in. A device of version 2 must answer for 1 too, and some do not.
var searches = [...][]byte{
	searchFor("urn:schemas-upnp-org:device:InternetGatewayDevice:1"),
	searchFor("urn:schemas-upnp-org:device:InternetGatewayDevice:2"),
}

// searchFor returns a search (UPnP Device Architecture 1.1, 1.3.2) that asks to be answered within a second.
func searchFor(target string) []byte {
	return fmt.Appendf(nil, "M-SEARCH * HTTP/1.1\r\nHOST: 239.255.255.250:1900\r\nMAN: \"ssdp:discover\"\r\n"+
		"MX: 1\r\nST: %s\r\n\r\n", target)
}

// parseFound returns the URL of the description that a reply to a search names. The error is errNotFound.
func parseFound(b []byte) (location string, err error) {
	if len(b) > maxSSDP {
		return "", errNotFound
	}
	resp, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(b)), &http.Request{Method: "M-SEARCH"})
	if err != nil {
		return "", errNotFound
	}
	resp.Body.Close()
	location = resp.Header.Get("Location")
	if resp.StatusCode != http.StatusOK || location == "" || len(location) > maxLocation {
		return "", errNotFound
	}
	return location, nil
}

// checkURL parses an HTTP URL whose host must be the gateway's address. base may be nil; what is missing is taken from
// it.
func checkURL(base *url.URL, ref string, gateway netip.Addr) (*url.URL, error) {
	if len(ref) > maxLocation {
		return nil, fmt.Errorf("URL of %d bytes", len(ref))
	}
	u, err := url.Parse(ref)
	if err != nil {
		return nil, err
	}
	if base != nil {
		u = base.ResolveReference(u)
	}
	if u.Scheme != "http" || u.User != nil {
		return nil, fmt.Errorf("%q is not an HTTP URL", ref)
	}
	if host, err := netip.ParseAddr(u.Hostname()); err != nil || host != gateway {
		return nil, fmt.Errorf("%q leads elsewhere than to the gateway", ref)
	}
	return u, nil
}

// search sends searches, and calls visit with each new URL that the gateway names, until visit returns true. It takes
// as long as the server's waits, and errSilent means that nothing acceptable came.
func (c *upnpClient) search(ctx context.Context, visit func(*url.URL) bool) error {
	var lc net.ListenConfig
	pc, err := lc.ListenPacket(ctx, "udp4", netip.AddrPortFrom(c.local, 0).String())
	if err != nil {
		return err
	}
	defer pc.Close()
	defer context.AfterFunc(ctx, func() { pc.Close() })()
	conn, ok := pc.(*net.UDPConn)
	if !ok {
		return fmt.Errorf("%T is not a UDP socket", pc)
	}
	if i := interfaceOf(c.local); i != nil {
		// Linux goes by our address; other systems want to be told. Without it they take the default route's.
		_ = ipv4.NewPacketConn(conn).SetMulticastInterface(i)
	}
	var seen []string
	buf := make([]byte, maxSSDP+1)
	foreign := 0
	for _, wait := range c.waits {
		if err := c.sendSearches(conn); err != nil {
			return ended(ctx, err)
		}
		if err := conn.SetReadDeadline(time.Now().Add(wait)); err != nil {
			return ended(ctx, err)
		}
		for {
			n, from, err := conn.ReadFromUDPAddrPort(buf)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				break
			}
			if err != nil {
				return ended(ctx, err)
			}
			if location, err := parseFound(buf[:n]); err == nil && from.Addr().Unmap() == c.gateway {
				if slices.Contains(seen, location) {
					continue
				}
				seen = append(seen, location)
				if u, err := checkURL(nil, location, c.gateway); err == nil && visit(u) {
					return nil
				}
				if len(seen) == maxLocations {
					return fmt.Errorf("%d devices, none of them of use", len(seen))
				}
				continue
			}
			if foreign++; foreign == maxForeign {
				return fmt.Errorf("%d datagrams that are no answer", foreign)
			}
		}
	}
	return errSilent
}

// sendSearches sends every search once. The error is that of the gateway's own, if none could be sent.
func (c *upnpClient) sendSearches(conn *net.UDPConn) error {
	var last error
	sent := false
	for _, to := range []netip.AddrPort{netip.AddrPortFrom(c.gateway, c.server.port), c.group} {
		for _, b := range searches {
			if _, err := conn.WriteToUDPAddrPort(b, to); err != nil {
				last = err
			} else {
				sent = true
			}
		}
	}
	if sent {
		return nil
	}
	return last
}
