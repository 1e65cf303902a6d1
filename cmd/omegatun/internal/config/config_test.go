package config

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"omegatun/cmd/omegatun/internal/exit"
	"omegatun/dht/key"
)

// testKey returns the public key of the seed that is n, 32 times.
func testKey(n byte) key.Public {
	var seed [key.SeedSize]byte
	for i := range seed {
		seed[i] = n
	}
	return key.FromSeed(seed).Public()
}

// load writes the two files, unless their text is "-", and loads them.
func load(t *testing.T, text, peers string) (*Config, error) {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{"config.toml": text, "peers.toml": peers} {
		if text == "-" {
			continue
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return Load(filepath.Join(dir, "config.toml"), false, filepath.Join(dir, "peers.toml"))
}

func TestLoadWithoutFiles(t *testing.T) {
	c, err := load(t, "-", "-")
	if err != nil {
		t.Fatal(err)
	}
	if c.Interface != "" || c.Name != "" || c.Bootstrap != nil || len(c.Peers) != 0 || c.Port != 0 || c.NoLAN {
		t.Errorf("Load without files: %+v, want the defaults", c)
	}
	if _, err := Load(filepath.Join(t.TempDir(), "x"), true, ""); exit.From(err).Code != exit.Usage {
		t.Errorf("Load of a named file that is missing: %v, want a usage error", err)
	}
}

func TestLoad(t *testing.T) {
	text := fmt.Sprintf(`
name = "laptop"
port = 4000
interface = "om1"
ipv4 = "10.64.0.7"
bootstrap = ["a.example:1", "10.0.0.1@b.example:2"]
port_mapping = false
relay = true
lan = false
queues = 3
priority = "high"
[[peer]]
key = %q
name = "desk"
relay = true
[[peer]]
key = %q
ipv4 = "10.64.0.8"
`, testKey(1), testKey(2).Hex())
	peers := fmt.Sprintf("[[peer]]\nkey = %q\nname = \"other\"\n[[peer]]\nkey = %q\nname = \"lab\"\n", testKey(1), testKey(3))
	c, err := load(t, text, peers)
	if err != nil {
		t.Fatal(err)
	}
	if c.Name != "laptop" || c.Port != 4000 || c.Interface != "om1" || c.IPv4 != netip.MustParseAddr("10.64.0.7") ||
		!slices.Equal(c.Bootstrap, []string{"a.example:1", "10.0.0.1@b.example:2"}) || !c.Relay || !c.NoLAN || !c.NoMapping ||
		c.Priority != PriorityHigh || c.Queues != 3 {
		t.Errorf("Load: %+v", c)
	}
	if relays := c.Peers.Relays(); !slices.Equal(relays, []key.Public{testKey(1)}) {
		t.Errorf("Relays = %v, want the first peer", relays)
	}
	want := []struct {
		key  key.Public
		name string
		ipv4 string
		line int
	}{
		{testKey(1), "desk", "invalid IP", 12}, // the person's file has the last word
		{testKey(2), "", "10.64.0.8", 16},
		{testKey(3), "lab", "invalid IP", 4},
	}
	if len(c.Peers) != len(want) {
		t.Fatalf("%d peers, want %d", len(c.Peers), len(want))
	}
	for i, w := range want {
		if p := c.Peers[i]; p.Key != w.key || p.Name != w.name || p.IPv4.String() != w.ipv4 || p.From.Line != w.line {
			t.Errorf("peer %d: %+v, want %+v", i, p, w)
		}
	}
}

func TestLoadRefuses(t *testing.T) {
	k1, k2 := testKey(1), testKey(2)
	peer := fmt.Sprintf("[[peer]]\nkey = %q\n", k1)
	for _, tt := range []struct{ name, text, want string }{
		{"syntax", "a\n= b", "line 1"},
		{"a port mapping that is neither on nor off", "port_mapping = 1", "line 1"},
		{"an unknown setting", "\nnmae = 'x'", `line 2: "nmae" is not a setting`},
		{"an unknown setting in the second peer", peer + "[[peer]]\nkey = '" + k2.String() + "'\n port = 1", `line 5: "peer.port" is not`},
		{"an unknown setting with the name of a known one elsewhere", "key = 'x'\n" + peer, `line 1: "key" is not`},
		{"an unknown table", "[dns]\nx = 1", `line 1: "dns" is not`},
		{"a number for text", "\nname = 3", `line 2: name: this has to be text in quotes`},
		{"text for a number", `port = "5"`, "line 1: port: this has to be a whole number"},
		{"a fraction for a number", `port = 5.5`, "line 1: port: this has to be a whole number"},
		{"text for yes or no", `lan = "yes"`, "line 1: lan: this has to be true or false"},
		{"text for a list", `bootstrap = "a:1"`, "line 1: bootstrap: this has to be a list"},
		{"a table for the peers", "[peer]\nkey = 'x'", "line 1: peer: each peer begins with a line [[peer]]"},
		{"a wrong type in the second peer", peer + "[[peer]]\nkey = 3", "peer.key: this has to be text"},
		{"a setting in capitals", "\nPort = 5", `line 2: "Port" is not a setting`},
		{"an unknown priority", `priority = "first"`, "line 1: priority: "},
		{"queues below none", "queues = -1", "line 1: queues: -1 is not between 0 and 16"},
		{"more queues than there can be", "queues = 17", "line 1: queues: 17 is not between 0 and 16"},
		{"a name with a dot", `name = "a.b"`, "line 1: name: "},
		{"a relay that is none", peer + "relay = 1", "line 3"},
		{"a port below 0", `port = -1`, "line 1: port: -1 is not between"},
		{"an interface with a slash", `interface = "a/b"`, "line 1: interface: "},
		{"an interface that is too long", `interface = "abcdefghijklmnop"`, "line 1: interface: "},
		{"IPv6 for IPv4", `ipv4 = "fd00::1"`, `line 1: ipv4: "fd00::1" is not an IPv4 address`},
		{"a loopback address", peer + `ipv4 = "127.0.0.1"`, `line 3: ipv4: "127.0.0.1" cannot be`},
		{"a bootstrap node without a port", `bootstrap = ["a"]`, "line 1: bootstrap: "},
		{"a bootstrap node with an IPv6 address", `bootstrap = ["[2001:db8::1]:49737"]`, "the DHT speaks IPv4 only"},
		{"an IPv6 address before the name", `bootstrap = ["2001:db8::1@a:49737"]`, "what comes before @ is not an IPv4 address"},
		{"a bootstrap node that is no host", `bootstrap = ["255.255.255.255:49737"]`, "cannot be the address of a machine"},
		{"a bootstrap node without a name that can be one", `bootstrap = ["a b:49737"]`, `"a b:49737" is not host:port`},
		{"a peer without a key", "[[peer]]\nname = 'x'", "line 1: this peer has no key"},
		{"a key that is none", "[[peer]]\nname = 'x'\nkey = 'abc'", "line 3: key: not a public key"},
		{"a key twice", peer + peer, "line 4: this key is listed already, in "},
		{"a name twice", peer + "name='a'\n[[peer]]\nkey = '" + k2.String() + "'\nname='a'", `line 6: the name "a" belongs to another peer already, in `},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := load(t, tt.text, "-")
			if e := exit.From(err); e == nil || e.Code != exit.Usage || e.Try == "" || !strings.Contains(e.Reason, tt.want) {
				t.Errorf("Load: %v, want a usage error with %q and a next step", err, tt.want)
			}
		})
	}
}

func TestEncodeIsReadBack(t *testing.T) {
	for _, peers := range []Peers{
		nil,
		{{Key: testKey(1), Name: "desk", Relay: true}, {Key: testKey(2), IPv4: netip.MustParseAddr("10.64.0.8")}, {Key: testKey(3)}},
	} {
		text, err := peers.Encode()
		if err != nil {
			t.Fatal(err)
		}
		c, err := load(t, "-", string(text))
		if err != nil {
			t.Fatalf("%v\n%s", err, text)
		}
		if !slices.EqualFunc(c.Peers, peers, func(a, b Peer) bool {
			return a.Key == b.Key && a.Name == b.Name && a.IPv4 == b.IPv4 && a.Relay == b.Relay
		}) {
			t.Errorf("read back %v, want %v", c.Peers, peers)
		}
	}
}

func TestFind(t *testing.T) {
	// Two keys that differ in the last bit only.
	alike1, alike2 := testKey(4), testKey(4)
	alike2[31] ^= 1
	peers := Peers{{Key: testKey(1), Name: "desk"}, {Key: testKey(2)}, {Key: alike1, Name: "a"}, {Key: alike2}}
	for _, tt := range []struct {
		name, arg string
		key       key.Public
		code      exit.Code
		reason    string
	}{
		{"z-base-32", testKey(1).String(), testKey(1), exit.OK, ""},
		{"hex", testKey(2).Hex(), testKey(2), exit.OK, ""},
		{"in capitals", strings.ToUpper(testKey(2).Hex()), testKey(2), exit.OK, ""},
		{"a key that is not listed", testKey(9).String(), testKey(9), exit.OK, ""},
		{"a name", "desk", testKey(1), exit.OK, ""},
		{"the beginning of a key", testKey(2).String()[:6], testKey(2), exit.OK, ""},
		{"the beginning of a key in hex", testKey(2).Hex()[:9], testKey(2), exit.OK, ""},
		{"too short a beginning", testKey(2).String()[:5], key.Public{}, exit.UnknownPeer, "from 6 characters on"},
		{"the beginning of two keys", alike1.String()[:10], key.Public{}, exit.UnknownPeer, "is the beginning of 2 keys: a, "},
		{"nobody", "nobody", key.Public{}, exit.UnknownPeer, "no listed peer is called"},
		{"nothing", "", key.Public{}, exit.UnknownPeer, "no listed peer is called"},
		{"a key that was cut", testKey(9).String()[:50], key.Public{}, exit.Usage, "it has 50 characters"},
		{"holesail's connection string", "hs://0000" + testKey(2).String(), testKey(2), exit.OK, ""},
		{"holesail's cut", "hs://0000" + testKey(2).String()[:50], key.Public{}, exit.Usage, "it has 50 characters"},
		{"holesail's secret", "hs://s000" + testKey(2).Hex(), key.Public{}, exit.Usage, "this is not a public key: it is a secret"},
		{"holesail's short secret", "hs://s000a", key.Public{}, exit.Usage, "this is not a public key: it is a secret"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p, err := peers.Find(tt.arg)
			if tt.code == exit.OK {
				if err != nil || p.Key != tt.key {
					t.Fatalf("Find(%q) = %v, %v, want %v", tt.arg, p.Key, err, tt.key)
				}
				return
			}
			if e := exit.From(err); e == nil || e.Code != tt.code || e.Try == "" || !strings.Contains(e.Reason, tt.reason) {
				t.Errorf("Find(%q): %v, want status %d with %q and a next step", tt.arg, err, tt.code, tt.reason)
			}
		})
	}
}

func TestCheckName(t *testing.T) {
	for _, s := range []string{"a", "desk-2", "0", strings.Repeat("a", 51)} {
		if err := CheckName(s); err != nil {
			t.Errorf("CheckName(%q): %v", s, err)
		}
	}
	for _, s := range []string{
		"", "-a", "a-", "A", "a.b", "a_b", "ä", "a b", strings.Repeat("a", 64), testKey(1).String(), testKey(1).Hex()[:63] + "\n",
	} {
		if CheckName(s) == nil {
			t.Errorf("CheckName(%q) accepts it", s)
		}
	}
}

func TestLoadTenThousandPeers(t *testing.T) {
	var peers Peers
	for i := range 10_000 {
		peers = append(peers, Peer{Key: key.Public{byte(i), byte(i >> 8), 1}, Name: fmt.Sprintf("peer-%d", i)})
	}
	text, err := peers.Encode()
	if err != nil {
		t.Fatal(err)
	}
	c, err := load(t, "-", string(text))
	if err != nil || len(c.Peers) != len(peers) {
		t.Fatalf("Load: %d peers, %v", len(c.Peers), err)
	}
}

// FuzzLoad checks that a list that is accepted can be written and read again.
func FuzzLoad(f *testing.F) {
	f.Add("name = 'x'\nport = 1\n[[peer]]\nkey = '" + testKey(1).String() + "'\nname = 'a'\nipv4 = '10.64.0.1'\n")
	f.Add("peer = [{key = '" + testKey(1).String() + "'}]")
	f.Add("[[peer.x]]\na.b = 1\n\"\" = 2")
	f.Fuzz(func(t *testing.T, text string) {
		c, again := &Config{}, &Config{}
		if c.add("a", text, false) != nil {
			return
		}
		b, err := c.Peers.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if err := again.add("b", string(b), true); err != nil {
			t.Fatalf("%v\n%s", err, b)
		}
		if len(again.Peers) != len(c.Peers) {
			t.Fatalf("%d peers, want %d", len(again.Peers), len(c.Peers))
		}
	})
}
