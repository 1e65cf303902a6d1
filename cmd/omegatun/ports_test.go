package main

import (
	"fmt"
	"maps"
	"testing"

	"omegatun/cmd/omegatun/internal/exit"
	"omegatun/dht"
	"omegatun/dht/key"
)

func TestParseForwarding(t *testing.T) {
	for _, tt := range []struct {
		arg  string
		want forwarding // zero: refused
	}{
		{"8080:desk:80", forwarding{"127.0.0.1", 8080, "desk", 80}},
		{"0:desk:80", forwarding{"127.0.0.1", 0, "desk", 80}},
		{"0.0.0.0:8080:desk:80", forwarding{"0.0.0.0", 8080, "desk", 80}},
		{"*:8080:desk:80", forwarding{"", 8080, "desk", 80}},
		{"localhost:8080:desk:80", forwarding{"localhost", 8080, "desk", 80}},
		{"[::1]:8080:desk:80", forwarding{"::1", 8080, "desk", 80}},
		{"8080:pear://desk:80", forwarding{"127.0.0.1", 8080, "pear://desk", 80}},
		{"::1:8080:desk:80", forwarding{}},
		{"[::1]8080:desk:80", forwarding{}},
		{"[::1:8080:desk:80", forwarding{}},
		{"8080::80", forwarding{}},
		{"8080:desk:", forwarding{}},
		{"65536:desk:80", forwarding{}},
		{"8080:desk:65536", forwarding{}},
		{"-1:desk:80", forwarding{}},
		{"", forwarding{}},
		{":", forwarding{}},
		{"::", forwarding{}},
		{":::", forwarding{}},
	} {
		got, err := parseForwarding(tt.arg)
		if refused := tt.want == (forwarding{}); got != tt.want || (err != nil) != refused {
			t.Errorf("parseForwarding(%q) = %+v, %v, want %+v", tt.arg, got, err, tt.want)
		}
		if err != nil && exit.From(err).Code != exit.Usage {
			t.Errorf("parseForwarding(%q): %v has the code %d", tt.arg, err, exit.From(err).Code)
		}
	}
}

func TestParseTarget(t *testing.T) {
	for arg, want := range map[string]string{
		"22": "localhost:22", "65535": "localhost:65535", "127.0.0.1:22": "127.0.0.1:22", "db.lan:5432": "db.lan:5432",
		"[::1]:80": "[::1]:80",
		"0":        "", "65536": "", "-1": "", "": "", "ssh": "", ":22": "", "::1:22": "", "db.lan:": "", "db.lan": "",
	} {
		got, err := parseTarget(arg)
		if err != nil {
			got = target{}
		}
		if refused := want == ""; refused != (err != nil) || !refused && got.String() != want {
			t.Errorf("parseTarget(%q) = %v, %v, want %q", arg, got, err, want)
		}
	}
}

// Keys of ports are known to others: they must stay what they are.
func TestPortKeysStay(t *testing.T) {
	identity := key.FromSeed([32]byte{1, 2, 3})
	for port, want := range map[uint16]string{
		22:   "jdohhi97t186nw1c5z4x3rskixqepmzm4sf778kdn3ramo3ntrko",
		8080: "8ogszbgzfewt7f56k3nbrni5a16pd57zdnaoetnuyy96qsujd6ro",
	} {
		if got := portKey(identity, port).Public().String(); got != want {
			t.Errorf("port %d: %s, want %s", port, got, want)
		}
	}
	if a, b := portKey(identity, 22).Public(), portKey(key.FromSeed([32]byte{1, 2, 4}), 22).Public(); a == b {
		t.Error("two identities have the same key for a port")
	}
}

func TestServicesAndTheirList(t *testing.T) {
	k := key.Generate()
	all, list := services(k, []target{{"localhost", 22}})
	if len(all) != 1 || all[0].key.Public() != k.Public() || len(list.Ports) != 1 || list.Ports[22] != k.Public() {
		t.Errorf("one port: %d services, list %+v; want the identity's key", len(all), list)
	}
	all, list = services(k, []target{{"localhost", 80}, {"localhost", 22}})
	if len(all) != 3 || all[0].key.Public() != k.Public() || all[0].target.port != 80 {
		t.Errorf("two ports: %d services, the first %+v; want the identity's key for port 80", len(all), all[0])
	}
	want := map[uint16]key.Public{80: portKey(k, 80).Public(), 22: portKey(k, 22).Public()}
	if !maps.Equal(list.Ports, want) || list.Port != 80 {
		t.Errorf("two ports: list %+v, want %v", list, want)
	}
	wire, err := list.encode()
	if err != nil {
		t.Fatal(err)
	}
	back, err := parsePortList(wire)
	if err != nil || !maps.Equal(back.Ports, list.Ports) || back.Port != 80 || back.Host != "127.0.0.1" || back.UDP {
		t.Errorf("parsePortList(%s) = %+v, %v", wire, back, err)
	}
	if got := list.String(); got != "22, 80" {
		t.Errorf("the list prints as %q, want 22, 80", got)
	}
}

func TestPortListThatIsNone(t *testing.T) {
	k := key.Generate().Public()
	for _, tt := range []string{
		"", "{}", "null", "[]", `"x"`, "hello", "\x00",
		`{"host":"127.0.0.1","udp":false,"port":8080}`, // holesail's
		`{"ports":{}}`,
		fmt.Sprintf(`{"ports":{"0":%q}}`, k),
		fmt.Sprintf(`{"ports":{"65536":%q}}`, k),
		fmt.Sprintf(`{"ports":{"x":%q}}`, k),
		`{"ports":{"22":""}}`,
		`{"ports":{"22":"short"}}`,
		`{"ports":{"22":null}}`,
		fmt.Sprintf(`{"ports":{"22":%q}} and more`, k),
		fmt.Sprintf(`{"ports":{"22":%q},"x":"%01000d"}`, k, 0),
	} {
		if list, err := parsePortList([]byte(tt)); err == nil {
			t.Errorf("parsePortList(%.60q) = %+v, want an error", tt, list)
		}
	}
}

func TestManyPortsFitTheList(t *testing.T) {
	var targets []target
	for port := uint16(65535); ; port-- {
		targets = append(targets, target{"localhost", port})
		_, list := services(key.Generate(), targets)
		wire, err := list.encode()
		if err != nil {
			break
		}
		if len(wire) > dht.MaxValue {
			t.Fatalf("%d ports: %d bytes", len(targets), len(wire))
		}
	}
	if n := len(targets) - 1; n < 14 {
		t.Errorf("only %d ports fit, want 14", n)
	}
}

func FuzzPortList(f *testing.F) {
	k := key.Generate()
	for _, targets := range [][]target{{{"localhost", 22}}, {{"localhost", 80}, {"db.lan", 5432}}} {
		_, list := services(k, targets)
		b, err := list.encode()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte(`{"host":"127.0.0.1","udp":false,"port":8080}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		list, err := parsePortList(b)
		if err != nil {
			return
		}
		wire, err := list.encode()
		if err != nil {
			return // the host's name may be longer in JSON than it came
		}
		back, err := parsePortList(wire)
		if err != nil || !maps.Equal(back.Ports, list.Ports) || back.Port != list.Port {
			t.Errorf("%q became %q, and that %+v, %v", b, wire, back, err)
		}
	})
}
