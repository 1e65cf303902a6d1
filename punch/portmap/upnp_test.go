package portmap

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestParseFound(t *testing.T) {
	for _, tt := range []struct{ name, wire, want string }{
		{"plain", "HTTP/1.1 200 OK\r\nLOCATION: http://192.168.1.1:5000/d.xml\r\n\r\n", "http://192.168.1.1:5000/d.xml"},
		{"no end", "HTTP/1.1 200 OK\r\nLocation:http://192.168.1.1/\r\n", ""},
		{"another status", "HTTP/1.1 404 Not Found\r\nLocation: http://192.168.1.1/\r\n\r\n", ""},
		{"no location", "HTTP/1.1 200 OK\r\nST: upnp:rootdevice\r\n\r\n", ""},
		{"long location", "HTTP/1.1 200 OK\r\nLocation: http://192.168.1.1/" + strings.Repeat("a", 600) + "\r\n\r\n", ""},
		{"announcement", "NOTIFY * HTTP/1.1\r\nLocation: http://192.168.1.1/\r\n\r\n", ""},
		{"long", "HTTP/1.1 200 OK\r\nLocation: http://192.168.1.1/\r\n\r\n" + strings.Repeat("a", maxSSDP), ""},
		{"empty", "", ""},
	} {
		got, err := parseFound([]byte(tt.wire))
		if got != tt.want || (err == nil) != (tt.want != "") {
			t.Errorf("%s: %q, %v, want %q", tt.name, got, err, tt.want)
		}
	}
}

func TestCheckURL(t *testing.T) {
	base, _ := url.Parse("http://192.168.1.1:5000/igd/d.xml")
	gateway := netip.MustParseAddr("192.168.1.1")
	for ref, want := range map[string]string{
		"/ctl":                                 "http://192.168.1.1:5000/ctl",
		"ctl?x=1":                              "http://192.168.1.1:5000/igd/ctl?x=1",
		"http://192.168.1.1/ctl":               "http://192.168.1.1/ctl",
		"http://192.168.1.2/ctl":               "",
		"//192.168.1.2/ctl":                    "",
		"http://router.lan/ctl":                "",
		"https://192.168.1.1/ctl":              "",
		"file:///etc/passwd":                   "",
		"http://a@192.168.1.1/ctl":             "",
		"http://192.168.1.1:x/ctl":             "",
		"http://[::1]/ctl":                     "",
		"http://192.168.1.1@evil/":             "",
		"/" + strings.Repeat("a", maxLocation): "",
	} {
		u, err := checkURL(base, ref, gateway)
		if got := fmt.Sprint(u); (err == nil) != (want != "") || err == nil && got != want {
			t.Errorf("%.60q: %v, %v, want %q", ref, u, err, want)
		}
	}
}

func TestParseDescription(t *testing.T) {
	var many strings.Builder
	for range 20 {
		fmt.Fprintf(&many, "<service><serviceType>%s</serviceType><controlURL>/c</controlURL></service>", wanServices[2])
	}
	one := func(kind, control string) []service { return []service{{kind, control}} }
	for _, tt := range []struct {
		name, xml string
		want      []service
		err       bool
	}{
		{"usual", fmt.Sprintf(descriptionOfIGD, wanServices[1], "/ctl"), one(wanServices[1], "/ctl"), false},
		{"version 2", fmt.Sprintf(descriptionOfIGD, wanServices[0], " /ctl\n"), one(wanServices[0], "/ctl"), false},
		{"another service", fmt.Sprintf(descriptionOfIGD, "urn:x", "/ctl"), nil, false},
		{"no control", fmt.Sprintf(descriptionOfIGD, wanServices[1], ""), nil, false},
		{"Latin-1", "<?xml version=\"1.0\" encoding=\"ISO-8859-1\"?><a><n>Fl\xfcgel</n><service><serviceType>" + wanServices[1] +
			"</serviceType><controlURL>/\xe9</controlURL></service></a>", one(wanServices[1], "/é"), false},
		{
			"best first", "<a><service><serviceType>" + wanServices[2] + "</serviceType><controlURL>/p</controlURL></service>" +
				"<service><serviceType>" + wanServices[1] + "</serviceType><controlURL>/i</controlURL></service></a>",
			[]service{{wanServices[1], "/i"}, {wanServices[2], "/p"}},
			false,
		},
		{"many", "<a>" + many.String() + "</a>", slices.Repeat(one(wanServices[2], "/c"), maxServices), false},
		{"deep", strings.Repeat("<a>", maxDepth+1), nil, true},
		{"endless text", "<a>" + strings.Repeat("x", 60000) + "</a>", nil, false},
		{"empty", "", nil, true},
		{"not XML", "\x00\x01", nil, true},
		{"entity", `<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>`, nil, false},
	} {
		d, err := parseDescription([]byte(tt.xml))
		if !slices.Equal(d.services, tt.want) || (err != nil) != tt.err {
			t.Errorf("%s: %q, %v, want %q", tt.name, d.services, err, tt.want)
		}
	}
	whole := fmt.Sprintf(descriptionOfIGD, wanServices[1], "/ctl")
	for n := range whole[:len(whole)-1] {
		if d, err := parseDescription([]byte(whole[:n])); err == nil && len(d.services) > 0 {
			t.Fatalf("the first %d bytes are a description: %q", n, d)
		}
	}
}

func TestUPnPMapsRenewsAndRemoves(t *testing.T) {
	d := newIGD(t, nil)
	c := d.client()
	if a, err := c.probe(t.Context()); err != nil || a != publicA.Addr() {
		t.Fatalf("probe: %v, %v", a, err)
	}
	l, err := request(t, c)
	if err != nil {
		t.Fatal(err)
	}
	if l.external != publicA || l.lifetime != c.lifetime || l.permanent {
		t.Errorf("lease %+v", l)
	}
	if want := map[string]string{"4000": "127.0.0.1:4000 1800"}; !maps.Equal(d.holds(), want) {
		t.Errorf("mapped %v, want %v", d.holds(), want)
	}
	if again, err := c.request(t.Context(), l.external); err != nil || again.external != l.external {
		t.Errorf("renewal: %v, %v", again.external, err)
	}
	for range 2 { // what is gone already is no error
		if err := c.release(t.Context(), l); err != nil || len(d.holds()) > 0 {
			t.Errorf("release: %v; mapped %v", err, d.holds())
		}
	}
}

func TestUPnPGatewayHasItsWays(t *testing.T) {
	t.Parallel()
	elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		t.Error("another host was asked")
	}))
	t.Cleanup(elsewhere.Close)
	// The same port at another address of this machine: only the address differs.
	other := "http://127.0.0.2:" + elsewhere.URL[strings.LastIndex(elsewhere.URL, ":")+1:]
	for _, tt := range []struct {
		name  string
		setup func(d *igd)
		probe string // of the error; empty: none
		want  string // of request's
		check func(d *igd, l lease) bool
	}{
		{
			"port taken, version 1", func(d *igd) { d.taken["4000"] = true }, "", "",
			func(d *igd, l lease) bool {
				return l.external.Port() >= 49152 && d.holds()[fmt.Sprint(l.external.Port())] == "127.0.0.1:4000 1800"
			},
		},
		{
			"port taken, version 2", func(d *igd) { d.kind, d.taken["4000"] = wanServices[0], true }, "", "",
			func(d *igd, l lease) bool { return l.external.Port() == 5000 },
		},
		{
			"permanent leases only", func(d *igd) { d.permanentOnly = true }, "", "",
			func(d *igd, l lease) bool {
				return l.permanent && l.lifetime > 0 && d.holds()["4000"] == "127.0.0.1:4000 0"
			},
		},
		{
			"permanent leases only, port taken", func(d *igd) { d.permanentOnly, d.taken["4000"] = true, true }, "", "",
			func(d *igd, l lease) bool { return l.permanent && l.external.Port() >= 49152 },
		},
		{
			"PPP", func(d *igd) { d.kind = wanServices[2] }, "", "",
			func(d *igd, l lease) bool { return l.external == publicA },
		},
		{
			"behind another NAT", func(d *igd) { d.external = "10.0.0.1" }, "", "",
			func(d *igd, l lease) bool { return l.external.Addr() == netip.MustParseAddr("10.0.0.1") },
		},
		{"refuses", func(d *igd) { d.fault = 606 }, "", "UPnP error 606", nil},
		{"always a conflict", func(d *igd) { d.fault = soapConflict }, "", "UPnP error 718", nil},
		{"no line", func(d *igd) { d.external = "0.0.0.0" }, "no external address", "no answer", nil},
		{"empty address", func(d *igd) { d.external = "" }, "no external address", "no answer", nil},
		{"no address", func(d *igd) { d.external = "&lt;none&gt;" }, "no external address", "no answer", nil},
		{"location elsewhere", func(d *igd) { d.location = other + "/rootDesc.xml" }, "no answer", "no answer", nil},
		{"control elsewhere", func(d *igd) { d.control = other + "/ctl" }, "leads elsewhere", "no answer", nil},
		{"base elsewhere", func(d *igd) {
			d.description = strings.Replace(fmt.Sprintf(descriptionOfIGD, wanServices[1], "/ctl/IPConn"),
				"<device>", "<URLBase>"+other+"</URLBase><device>", 1)
		}, "", "", func(d *igd, l lease) bool { return l.external == publicA }},
		{"redirect", func(d *igd) { d.location = d.http.URL + "/redirect" }, "HTTP status 302", "no answer", nil},
		{"endless description", func(d *igd) { d.description = strings.Repeat("<a>", maxBody) }, "more than 65536 bytes", "no answer", nil},
		{"no service", func(d *igd) { d.kind = "urn:x" }, "no service that maps ports", "no answer", nil},
		{"no description", func(d *igd) { d.description = "hello" }, "unexpected EOF", "no answer", nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			d := newIGD(t, tt.setup)
			c := d.client()
			_, err := c.probe(t.Context())
			matches := func(what string, err error, want string) {
				if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
					t.Errorf("%s: %v, want %q", what, err, want)
				}
			}
			matches("probe", err, tt.probe)
			l, err := request(t, c)
			matches("request", err, tt.want)
			if tt.check != nil && !tt.check(d, l) {
				t.Errorf("lease %+v, mapped %v", l, d.holds())
			}
			d.mu.Lock()
			defer d.mu.Unlock()
			if n := len(d.calls); n > 8 {
				t.Errorf("%d calls: %v", n, d.calls)
			}
		})
	}
}

func TestUPnPGatewayHangs(t *testing.T) {
	t.Parallel()
	hangs := make(chan struct{})
	slow := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "<a>")
		w.(http.Flusher).Flush()
		<-hangs
	}))
	t.Cleanup(slow.Close)
	t.Cleanup(func() { close(hangs) })
	d := newIGD(t, func(d *igd) { d.location = slow.URL })
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := d.client().probe(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a description that never ends was read: %v", err)
	}
}

func TestSearchHearsTheGatewayOnly(t *testing.T) {
	t.Parallel()
	c := newIGD(t, nil).client()
	c.gateway = netip.MustParseAddr("127.0.0.3") // hears nothing; d answers as one of the group
	if _, err := c.probe(t.Context()); !errors.Is(err, errSilent) {
		t.Errorf("probe: %v, want %v", err, errSilent)
	}
}

func TestAppendCallEscapes(t *testing.T) {
	b := appendCall(nil, wanServices[1], "X", []argument{{"A", "<&>\x00"}, {"B", ""}})
	got := map[string]string{}
	if err := walkXML(b, func(element, text string) { got[element] = text }); err != nil {
		t.Fatal(err)
	}
	if want := map[string]string{"A": "<&>\uFFFD", "B": "", "X": "", "Body": "", "Envelope": ""}; !maps.Equal(got, want) {
		t.Errorf("%s: %q, want %q", b, got, want)
	}
}

func FuzzFound(f *testing.F) {
	f.Add([]byte("HTTP/1.1 200 OK\r\nLOCATION: http://192.168.1.1:5000/d.xml\r\n\r\n"))
	gateway := netip.MustParseAddr("192.168.1.1")
	f.Fuzz(func(t *testing.T, b []byte) {
		location, err := parseFound(b)
		if err != nil {
			return
		}
		u, err := checkURL(nil, location, gateway)
		if err != nil {
			return
		}
		again, err := checkURL(nil, u.String(), gateway)
		if err != nil && len(u.String()) <= maxLocation || err == nil && again.Host != u.Host {
			t.Errorf("%q became %v, %v", location, again, err)
		}
	})
}

func FuzzDescription(f *testing.F) {
	f.Add(fmt.Appendf(nil, descriptionOfIGD, wanServices[1], "/ctl"))
	f.Add([]byte("<?xml version=\"1.0\" encoding=\"x\"?><a>\xff</a>"))
	f.Fuzz(func(t *testing.T, b []byte) {
		d, err := parseDescription(b)
		if err != nil {
			return
		}
		if len(d.services) > maxServices {
			t.Errorf("%d services", len(d.services))
		}
		for _, s := range d.services {
			if !slices.Contains(wanServices[:], s.kind) || s.control == "" || len(s.control) > maxText {
				t.Errorf("service %q", s)
			}
		}
	})
}

func FuzzSOAP(f *testing.F) {
	f.Add([]byte("<Envelope><Body><r><NewExternalIPAddress>192.88.99.1</NewExternalIPAddress></r></Body></Envelope>"))
	f.Add([]byte("<a><errorCode>718</errorCode><errorDescription>x</errorDescription><NewReservedPort>5</NewReservedPort></a>"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := parseSOAP(b)
		if err != nil {
			return
		}
		again, err := parseSOAP(appendCall(nil, wanServices[1], "R", []argument{
			{"NewExternalIPAddress", r.externalIP},
			{"NewReservedPort", r.reservedPort},
			{"errorCode", r.errorCode},
			{"errorDescription", r.errorText},
		}))
		if err != nil {
			t.Fatalf("%+v: %v", r, err)
		}
		if cut := func(s string) string { return s[:min(len(s), maxText/2)] }; cut(again.errorCode) != cut(r.errorCode) &&
			strings.ToValidUTF8(r.errorCode, "") == r.errorCode && !strings.ContainsRune(r.errorCode, '\uFFFD') {
			t.Errorf("%+v became %+v", r, again)
		}
	})
}
