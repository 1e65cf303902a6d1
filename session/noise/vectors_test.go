package noise

import (
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"omegatun/dht/key"
)

// hexBytes is a byte string that vectors write in hex.
type hexBytes []byte

func (b *hexBytes) UnmarshalText(text []byte) (err error) {
	*b, err = hex.DecodeString(string(text))
	return err
}

// load reads a vector file into v.
func load(t testing.TB, name string, v any) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, v); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
}

// repeated returns the identity whose seed is 32 times n.
func repeated(n byte) key.Private {
	var seed [key.SeedSize]byte
	for i := range seed {
		seed[i] = n
	}
	return key.FromSeed(seed)
}
