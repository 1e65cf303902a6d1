package portmap

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"time"
)

const (
	// httpTimeout bounds one request. Small routers take a second to write their XML.
	httpTimeout = 4 * time.Second
	// maxBody and maxHeader bound a reply; descriptions have some 5 KiB.
	maxBody   = 64 << 10
	maxHeader = 16 << 10
	// portTries is how many other ports are asked for if the one wanted is taken.
	portTries = 3
)

// soapError is a failed call (WANIPConnection:2, 2.5; UPnP Device Architecture 1.1, 3.2.5).
type soapError struct {
	code int
	text string // by the gateway; may be empty
}

// Codes that we do something about.
const (
	soapInvalidArgs   = 402 // what some say to a lease that ends
	soapActionFailed  = 501 // what some say instead of soapConflict
	soapNotInArray    = 713
	soapNoSuchEntry   = 714
	soapConflict      = 718
	soapPermanentOnly = 725
	soapOtherConflict = 729 // with another mechanism
)

func (e soapError) Error() string {
	if e.text == "" {
		return fmt.Sprintf("UPnP error %d", e.code)
	}
	return fmt.Sprintf("UPnP error %d (%q)", e.code, e.text)
}

// upnpClient is UPnP with one gateway.
type upnpClient struct {
	server
	group    netip.AddrPort // where searches are multicast to
	internal uint16
	lifetime time.Duration
	name     string // description of the mapping

	service *wanService // found by probe; nil: nothing is
}

// wanService is a service that maps ports. It is not changed.
type wanService struct {
	kind    string // one of wanServices
	control *url.URL
}

func (*upnpClient) protocol() Protocol { return UPnP }

// probe implements client: it looks for the service with the best external address.
func (c *upnpClient) probe(ctx context.Context) (best netip.Addr, err error) {
	c.service = nil
	var last error
	err = c.search(ctx, func(location *url.URL) bool {
		best, last = c.choose(ctx, location)
		return c.service != nil
	})
	if last != nil && err != nil {
		err = last // a device was found, so this says more
	}
	return best, err
}

// choose reads the description at location and sets service to the one that has a public address, or else to one
// with any.
func (c *upnpClient) choose(ctx context.Context, location *url.URL) (best netip.Addr, err error) {
	body, err := c.fetch(ctx, &http.Request{Method: http.MethodGet, URL: location, Header: http.Header{}})
	if err != nil {
		return best, err
	}
	d, err := parseDescription(body)
	if err != nil {
		return best, err
	}
	base := location
	if d.base != "" {
		if u, err := checkURL(location, d.base, c.gateway); err == nil {
			base = u
		}
	}
	last := errors.New("no service that maps ports")
	for _, s := range d.services {
		u, err := checkURL(base, s.control, c.gateway)
		if err != nil {
			last = err
			continue
		}
		w := &wanService{s.kind, u}
		a, err := c.external(ctx, w)
		if err != nil {
			last = err
			continue
		}
		if c.service == nil || isPublic(a) {
			c.service, best = w, a
		}
		if isPublic(a) {
			break
		}
	}
	if c.service == nil {
		return best, last
	}
	return best, nil
}

// external asks a service for its external address.
func (c *upnpClient) external(ctx context.Context, w *wanService) (netip.Addr, error) {
	r, err := c.call(ctx, w, "GetExternalIPAddress", nil)
	if err != nil {
		return netip.Addr{}, err
	}
	a, err := netip.ParseAddr(r.externalIP)
	if err != nil || !a.Is4() || a.IsUnspecified() || a.IsMulticast() {
		return netip.Addr{}, fmt.Errorf("no external address: %.40q", r.externalIP)
	}
	return a, nil
}

// request implements client.
func (c *upnpClient) request(ctx context.Context, want netip.AddrPort) (lease, error) {
	if c.service == nil {
		return lease{}, errSilent
	}
	address, err := c.external(ctx, c.service)
	if err != nil {
		return lease{}, err
	}
	l := lease{protocol: UPnP, lifetime: c.lifetime, service: c.service}
	port, conflict := want.Port(), false
	for try := 0; ; try++ {
		var got uint16
		if got, err = c.add(ctx, conflict, port, l.permanent); err == nil {
			l.external, l.at = netip.AddrPortFrom(address, got), time.Now()
			return l, nil
		}
		e, ok := errors.AsType[soapError](err)
		switch {
		case !ok || try == portTries:
			return lease{}, err
		case e.code == soapPermanentOnly || e.code == soapInvalidArgs && !l.permanent:
			l.permanent = true
		case e.code == soapConflict || e.code == soapOtherConflict || e.code == soapActionFailed:
			port, conflict = 49152+rand.N[uint16](16384), true
		default:
			return lease{}, err
		}
	}
}

// add asks for one mapping, and returns its port: the one given, unless anyPort is set and the service can choose.
func (c *upnpClient) add(ctx context.Context, anyPort bool, port uint16, permanent bool) (uint16, error) {
	seconds := "0"
	if !permanent {
		seconds = strconv.Itoa(int(c.lifetime / time.Second))
	}
	args := []argument{
		{"NewRemoteHost", ""},
		{"NewExternalPort", strconv.Itoa(int(port))},
		{"NewProtocol", "UDP"},
		{"NewInternalPort", strconv.Itoa(int(c.internal))},
		{"NewInternalClient", c.local.String()},
		{"NewEnabled", "1"},
		{"NewPortMappingDescription", c.name},
		{"NewLeaseDuration", seconds},
	}
	if !anyPort || c.service.kind != wanServices[0] {
		_, err := c.call(ctx, c.service, "AddPortMapping", args)
		return port, err
	}
	r, err := c.call(ctx, c.service, "AddAnyPortMapping", args)
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseUint(r.reservedPort, 10, 16)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("mapping granted at port %.40q", r.reservedPort)
	}
	return uint16(n), nil
}

// release implements client.
func (c *upnpClient) release(ctx context.Context, l lease) error {
	_, err := c.call(ctx, l.service, "DeletePortMapping", []argument{
		{"NewRemoteHost", ""},
		{"NewExternalPort", strconv.Itoa(int(l.external.Port()))},
		{"NewProtocol", "UDP"},
	})
	if e, ok := errors.AsType[soapError](err); ok && (e.code == soapNoSuchEntry || e.code == soapNotInArray) {
		return nil // it is gone already
	}
	return err
}

// call makes a SOAP call. The error is a soapError if the gateway answered that it failed.
func (c *upnpClient) call(ctx context.Context, w *wanService, action string, args []argument) (soapReply, error) {
	b := appendCall(nil, w.kind, action, args)
	body, err := c.fetch(ctx, &http.Request{
		Method: http.MethodPost,
		URL:    w.control,
		Header: http.Header{
			"Content-Type": {`text/xml; charset="utf-8"`},
			"SOAPAction":   {fmt.Sprintf(`"%s#%s"`, w.kind, action)}, // some want it spelt like this
		},
		Body:          io.NopCloser(bytes.NewReader(b)),
		ContentLength: int64(len(b)),
	})
	if err != nil {
		return soapReply{}, err
	}
	r, err := parseSOAP(body)
	if err != nil {
		return soapReply{}, err
	}
	if r.errorCode != "" {
		code, err := strconv.Atoi(r.errorCode)
		if err != nil {
			return soapReply{}, fmt.Errorf("SOAP reply: error %.40q", r.errorCode)
		}
		return soapReply{}, soapError{code, r.errorText[:min(len(r.errorText), 80)]}
	}
	return r, nil
}

// fetch makes one request to the gateway, on a connection of its own, and returns the body. Status 500 comes with every
// failed call, and is no error here.
func (c *upnpClient) fetch(ctx context.Context, req *http.Request) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, httpTimeout)
	defer cancel()
	req.Header.Set("User-Agent", "omegatun UPnP/1.1")
	t := &http.Transport{
		DialContext:            c.dial, // and no proxy
		DisableKeepAlives:      true,
		DisableCompression:     true,
		MaxResponseHeaderBytes: maxHeader,
	}
	resp, err := t.RoundTrip(req.WithContext(ctx)) // follows no redirect
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxBody+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("%v: %w", req.URL, err)
	case len(body) > maxBody:
		return nil, fmt.Errorf("%v: more than %d bytes", req.URL, maxBody)
	case resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusInternalServerError:
		return nil, fmt.Errorf("%v: HTTP status %d", req.URL, resp.StatusCode)
	}
	return body, nil
}

// dial connects to the gateway, and to nobody else.
func (c *upnpClient) dial(ctx context.Context, _, addr string) (net.Conn, error) {
	to, err := netip.ParseAddrPort(addr)
	if err != nil {
		return nil, err
	}
	if to.Addr() != c.gateway {
		return nil, fmt.Errorf("%v is not the gateway", to)
	}
	d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(c.local, 0))}
	return d.DialContext(ctx, "tcp4", to.String())
}
