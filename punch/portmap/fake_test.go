package portmap

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// quick waits are for servers that do not answer, or whose answers cannot be lost.
var quick = slices.Repeat([]time.Duration{50 * time.Millisecond}, 3)

var loopback = netip.AddrFrom4([4]byte{127, 0, 0, 1})

// serveUDP answers each datagram to a port of addr with what handle returns, until the test ends.
func serveUDP(t *testing.T, addr netip.Addr, handle func(b []byte, from netip.AddrPort) [][]byte) *net.UDPConn {
	t.Helper()
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(addr, 0)))
	if err != nil {
		t.Skipf("no UDP on %v: %v", addr, err)
	}
	var wg sync.WaitGroup
	t.Cleanup(wg.Wait)
	t.Cleanup(func() { c.Close() })
	wg.Go(func() {
		buf := make([]byte, 4096)
		for {
			n, from, err := c.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
			for _, reply := range handle(buf[:n], from) {
				c.WriteToUDPAddrPort(reply, from)
			}
		}
	})
	return c
}

func portOf(c interface{ LocalAddr() net.Addr }) uint16 {
	return netip.MustParseAddrPort(c.LocalAddr().String()).Port()
}

// box is a gateway that speaks PCP and NAT-PMP, by the letter of the RFCs.
type box struct {
	t *testing.T

	mu       sync.Mutex // guards the fields below
	started  time.Time
	external netip.Addr
	taken    map[uint16]bool // ports outside that others have
	lifetime uint32          // most granted, seconds
	mapped   map[uint16]boxMapping
	requests int
	// pcp and pmp say which protocols it speaks.
	pcp, pmp bool
	// mangle changes each reply, or makes several of it. May be nil.
	mangle func(reply []byte) [][]byte
}

type boxMapping struct {
	nonce    nonce
	internal uint16
	lifetime uint32
}

// newBox returns a box, changed by setup, which may be nil.
func newBox(t *testing.T, setup func(x *box)) *box {
	x := &box{
		t: t, started: time.Now().Add(-1000 * time.Second), external: publicA.Addr(), taken: map[uint16]bool{},
		lifetime: 7200, mapped: map[uint16]boxMapping{}, pcp: true, pmp: true,
	}
	if setup != nil {
		setup(x)
	}
	return x
}

// holds returns how many mappings there are.
func (x *box) holds() int {
	x.mu.Lock()
	defer x.mu.Unlock()
	return len(x.mapped)
}

func (x *box) serve(addr netip.Addr) server {
	return server{route{addr, addr}, portOf(serveUDP(x.t, addr, x.handle)), resendAfter}
}

func (x *box) handle(b []byte, from netip.AddrPort) [][]byte {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.requests++
	var reply []byte
	switch {
	case len(b) < 2:
		x.t.Errorf("request of %d bytes", len(b))
	case b[0] == 0 && x.pmp:
		reply = x.natpmp(b)
	case b[0] != 0 && x.pmp && !x.pcp: // RFC 6886, 3.5
		reply = binary.BigEndian.AppendUint32([]byte{0, b[1] | isResponse, 0, 1}, x.seconds())
	case b[0] == 2 && x.pcp:
		reply = x.pcpReply(b, from.Addr())
	}
	switch {
	case reply == nil:
		return nil
	case x.mangle != nil:
		return x.mangle(reply)
	}
	return [][]byte{reply}
}

func (x *box) seconds() uint32 { return uint32(time.Since(x.started) / time.Second) }

// assign maps, renews or, with a lifetime of 0, removes.
func (x *box) assign(n nonce, internal, wanted uint16, lifetime uint32) (external uint16, granted uint32) {
	for e, m := range x.mapped {
		if m.internal == internal {
			wanted = e
		}
	}
	if lifetime == 0 {
		delete(x.mapped, wanted)
		return 0, 0
	}
	for x.taken[wanted] {
		wanted++
	}
	granted = min(lifetime, x.lifetime)
	x.mapped[wanted] = boxMapping{n, internal, granted}
	return wanted, granted
}

func (x *box) natpmp(b []byte) []byte {
	header := func(op byte) []byte {
		return binary.BigEndian.AppendUint32([]byte{0, op | isResponse, 0, 0}, x.seconds())
	}
	switch {
	case len(b) == 2 && b[1] == pmpAddress:
		a := x.external.As4()
		return append(header(pmpAddress), a[:]...)
	case len(b) == 12 && b[1] == pmpMapUDP:
		internal := binary.BigEndian.Uint16(b[4:])
		external, granted := x.assign(nonce{}, internal, binary.BigEndian.Uint16(b[6:]), binary.BigEndian.Uint32(b[8:]))
		r := binary.BigEndian.AppendUint16(header(pmpMapUDP), internal)
		r = binary.BigEndian.AppendUint16(r, external)
		return binary.BigEndian.AppendUint32(r, granted)
	default:
		x.t.Errorf("NAT-PMP request %x", b)
		return nil
	}
}

func (x *box) pcpReply(b []byte, from netip.Addr) []byte {
	if len(b) < pcpHeader || b[2] != 0 || b[3] != 0 {
		x.t.Errorf("PCP request %x", b)
		return nil
	}
	r := append([]byte(nil), b...)
	r[1] |= isResponse
	binary.BigEndian.PutUint32(r[8:], x.seconds())
	clear(r[12:24])
	fail := func(code byte) []byte {
		r[3] = code
		binary.BigEndian.PutUint32(r[4:], 30)
		return r
	}
	if netip.AddrFrom16([16]byte(b[8:24])).Unmap() != from {
		return fail(12)
	}
	switch b[1] {
	case pcpAnnounce:
		return r
	case pcpMap:
		n, internal := nonce(b[24:36]), binary.BigEndian.Uint16(b[40:])
		for _, m := range x.mapped {
			if m.internal == internal && m.nonce != n {
				return fail(2)
			}
		}
		external, granted := x.assign(n, internal, binary.BigEndian.Uint16(b[42:]), binary.BigEndian.Uint32(b[4:]))
		binary.BigEndian.PutUint32(r[4:], granted)
		binary.BigEndian.PutUint16(r[42:], external)
		a := x.external.As16()
		copy(r[44:], a[:])
		return r
	default:
		return fail(4)
	}
}

// igd is an Internet gateway device.
type igd struct {
	t    *testing.T
	http *httptest.Server
	ssdp *net.UDPConn

	mu       sync.Mutex // guards the fields below
	kind     string     // of its service
	external string
	taken    map[string]bool
	mapped   map[string]string // port outside to address and port inside, lease
	calls    []string
	// permanentOnly refuses leases that end.
	permanentOnly bool
	// location, control and description replace what it says of itself, if not empty.
	location, control, description string
	// fault is the answer to every call that maps, if not zero.
	fault int
}

// newIGD returns a device, changed by setup, which may be nil.
func newIGD(t *testing.T, setup func(d *igd)) *igd {
	d := &igd{
		t: t, kind: wanServices[1], external: publicA.Addr().String(),
		taken: map[string]bool{}, mapped: map[string]string{},
	}
	d.http = httptest.NewServer(d)
	t.Cleanup(d.http.Close)
	if setup != nil {
		setup(d)
	}
	d.ssdp = serveUDP(t, loopback, d.search)
	return d
}

// client returns a client that finds d.
func (d *igd) client() *upnpClient {
	port := portOf(d.ssdp)
	return &upnpClient{
		server: server{route{loopback, loopback}, port, quick}, group: netip.AddrPortFrom(loopback, port),
		internal: 4000, lifetime: 30 * time.Minute, name: `omegatun <&> "x"`,
	}
}

func (d *igd) search(b []byte, _ netip.AddrPort) [][]byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	req := string(b)
	if !strings.HasPrefix(req, "M-SEARCH * HTTP/1.1\r\n") || !strings.Contains(req, "MAN: \"ssdp:discover\"\r\n") ||
		!strings.HasSuffix(req, "\r\n\r\n") {
		d.t.Errorf("search %q", req)
	}
	location := d.http.URL + "/rootDesc.xml"
	if d.location != "" {
		location = d.location
	}
	return [][]byte{[]byte("HTTP/1.1 200 OK\r\nCACHE-CONTROL: max-age=120\r\nST: upnp:rootdevice\r\nEXT:\r\nLOCATION: " +
		location + "\r\nContent-Length: 0\r\n\r\n")}
}

// holds returns a copy of the mappings.
func (d *igd) holds() map[string]string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return maps.Clone(d.mapped)
}

const descriptionOfIGD = `<?xml version="1.0"?>
<root xmlns="urn:schemas-upnp-org:device-1-0"><specVersion><major>1</major><minor>0</minor></specVersion>
<device><deviceType>urn:schemas-upnp-org:device:InternetGatewayDevice:1</deviceType><friendlyName>R&amp;D</friendlyName>
<serviceList><service><serviceType>urn:schemas-upnp-org:service:Layer3Forwarding:1</serviceType>
<controlURL>/ctl/L3F</controlURL></service></serviceList>
<deviceList><device><deviceType>urn:schemas-upnp-org:device:WANDevice:1</deviceType>
<deviceList><device><deviceType>urn:schemas-upnp-org:device:WANConnectionDevice:1</deviceType>
<serviceList><service><serviceType>%s</serviceType><serviceId>urn:upnp-org:serviceId:WANIPConn1</serviceId>
<controlURL>%s</controlURL><eventSubURL>/evt/IPConn</eventSubURL><SCPDURL>/WANIPCn.xml</SCPDURL></service></serviceList>
</device></deviceList></device></deviceList><presentationURL>/</presentationURL></device></root>`

func (d *igd) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch r.URL.Path {
	case "/rootDesc.xml":
		control := "/ctl/IPConn"
		if d.control != "" {
			control = d.control
		}
		if d.description != "" {
			io.WriteString(w, d.description)
			return
		}
		fmt.Fprintf(w, descriptionOfIGD, d.kind, control)
	case "/redirect":
		http.Redirect(w, r, "/rootDesc.xml", http.StatusFound)
	case "/ctl/IPConn":
		d.call(w, r)
	default:
		d.t.Errorf("asked for %v", r.URL)
		http.NotFound(w, r)
	}
}

func (d *igd) call(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		d.t.Error(err)
	}
	kind, action, _ := strings.Cut(strings.Trim(r.Header.Get("SOAPAction"), `"`), "#")
	if kind != d.kind || !bytes.Contains(body, fmt.Appendf(nil, `<u:%s xmlns:u="%s">`, action, kind)) {
		d.t.Errorf("call %s of %s: %s", action, kind, body)
	}
	d.calls = append(d.calls, action)
	args := map[string]string{}
	if err := walkXML(body, func(element, text string) { args[element] = text }); err != nil {
		d.t.Errorf("%s: %v", body, err)
	}
	reply := func(inside string) {
		fmt.Fprintf(w, `<?xml version="1.0"?><s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"><s:Body>`+
			`<u:%sResponse xmlns:u="%s">%s</u:%sResponse></s:Body></s:Envelope>`, action, kind, inside, action)
	}
	fault := func(code int) {
		w.WriteHeader(http.StatusInternalServerError)
		fmt.Fprintf(w, `<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"><s:Body><s:Fault>`+
			`<faultcode>s:Client</faultcode><faultstring>UPnPError</faultstring><detail>`+
			`<UPnPError xmlns="urn:schemas-upnp-org:control-1-0"><errorCode>%d</errorCode>`+
			`<errorDescription>No</errorDescription></UPnPError></detail></s:Fault></s:Body></s:Envelope>`, code)
	}
	if action == "GetExternalIPAddress" {
		reply("<NewExternalIPAddress>" + d.external + "</NewExternalIPAddress>")
		return
	}
	if args["NewProtocol"] != "UDP" {
		d.t.Errorf("%s: %s", action, body)
	}
	port := args["NewExternalPort"]
	if action == "DeletePortMapping" {
		if _, ok := d.mapped[port]; !ok {
			fault(soapNoSuchEntry)
			return
		}
		delete(d.mapped, port)
		reply("")
		return
	}
	if args["NewPortMappingDescription"] != `omegatun <&> "x"` || args["NewEnabled"] != "1" {
		d.t.Errorf("%s: %s", action, body)
	}
	switch {
	case d.fault != 0:
		fault(d.fault)
	case d.permanentOnly && args["NewLeaseDuration"] != "0":
		fault(soapPermanentOnly)
	case action == "AddPortMapping" && d.taken[port]:
		fault(soapConflict)
	case action == "AddPortMapping":
		d.mapped[port] = args["NewInternalClient"] + ":" + args["NewInternalPort"] + " " + args["NewLeaseDuration"]
		reply("")
	case action == "AddAnyPortMapping":
		d.mapped["5000"] = args["NewInternalClient"] + ":" + args["NewInternalPort"] + " " + args["NewLeaseDuration"]
		reply("<NewReservedPort>5000</NewReservedPort>")
	default:
		fault(401)
	}
}
