//go:build linux

package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"omegatun/scripts/netlab"
)

// ends are both ends of the cable, with the names and the addresses that most tunnels get.
func (b *bed) ends() [2]end {
	return [2]end{
		{b.a, "a", innerA, innerB, addrA.Addr(), addrB.Addr()},
		{b.b, "b", innerB, innerA, addrB.Addr(), addrA.Addr()},
	}
}

type end struct {
	n             *netlab.Net
	name          string
	inner, there  netip.Prefix
	local, remote netip.Addr
}

// start starts a daemon in the namespace of n.
func (b *bed) start(n *netlab.Net, onLine func(string), args ...string) error {
	p, err := n.Start(netlab.Cmd{Args: args, OnLine: onLine})
	if err == nil {
		b.daemons = append(b.daemons, p)
	}
	return err
}

// address gives the interface that a daemon makes its address.
func (e *end) address(ctx context.Context, dev string) error {
	return retry(ctx, 10*time.Second, func() error {
		return errors.Join(
			e.n.Run("ip", "link", "set", dev, "mtu", tunnelMTU, "up"),
			e.n.Run("ip", "addr", "replace", e.inner.String(), "dev", dev),
		)
	})
}

// startYggdrasil leaves the MTU as it is: 65535, over TCP.
func startYggdrasil(ctx context.Context, b *bed) error {
	bin := filepath.Join(b.o.bin, "yggdrasil")
	addresses := make(chan string, 2)
	onLine := func(line string) { addresses <- line }
	for i, e := range b.ends() {
		args := []string{bin, "ygg" + e.name, fmt.Sprintf("tcp://%v:9001", e.local)}
		if i == 1 {
			args = append(args, fmt.Sprintf("tcp://%v:9001", e.remote))
		}
		if err := b.start(e.n, onLine, args...); err != nil {
			return err
		}
		select {
		case line := <-addresses:
			a, err := netip.ParseAddr(strings.TrimSpace(line))
			if err != nil {
				return err
			}
			if i == 0 {
				b.from = a
			} else {
				b.to = a
			}
		case <-time.After(10 * time.Second):
			return fmt.Errorf("no address: %s", b.daemons[i].Output())
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

func startTinc(ctx context.Context, b *bed) error {
	b.from, b.to = innerA.Addr(), innerB.Addr()
	dirs := [2]string{filepath.Join(b.dir, "a"), filepath.Join(b.dir, "b")}
	for i, e := range b.ends() {
		other := string("ba"[i])
		configuration := fmt.Sprintf("Name = %s\nAddressFamily = ipv4\nInterface = tinc%s\nMode = router\nConnectTo = %s\n",
			e.name, e.name, other)
		host := fmt.Sprintf("Subnet = %v/32\nAddress = %v\nCipher = aes-256-cbc\nDigest = sha256\n", e.inner.Addr(), e.local)
		err := errors.Join(
			os.MkdirAll(filepath.Join(dirs[i], "hosts"), 0o700),
			os.WriteFile(filepath.Join(dirs[i], "tinc.conf"), []byte(configuration), 0o600),
			os.WriteFile(filepath.Join(dirs[i], "hosts", e.name), []byte(host), 0o600),
			e.n.Run(filepath.Join(b.o.bin, "tinc"), "-c", dirs[i], "-K2048"),
		)
		if err != nil {
			return err
		}
	}
	for i, e := range b.ends() {
		host, err := os.ReadFile(filepath.Join(dirs[i], "hosts", e.name))
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dirs[1-i], "hosts", e.name), host, 0o600); err != nil {
			return err
		}
	}
	for i, e := range b.ends() {
		if err := b.start(e.n, nil, filepath.Join(b.o.bin, "tinc"), "-c", dirs[i], "-D", "--pidfile", filepath.Join(dirs[i], "pid")); err != nil {
			return err
		}
		if err := e.address(ctx, "tinc"+e.name); err != nil {
			return err
		}
	}
	return nil
}

// startOpenVPN starts it without the kernel's data path, which would be another thing than a userspace tunnel.
func startOpenVPN(_ context.Context, b *bed) error {
	b.from, b.to = innerA.Addr(), innerB.Addr()
	file := func(name string) string { return filepath.Join(b.dir, name) }
	var prints [2]string
	for i, e := range b.ends() {
		certificate, key, err := selfSigned(e.name)
		if err != nil {
			return err
		}
		sum := sha256.Sum256(certificate)
		prints[i] = strings.ToUpper(strings.TrimSuffix(fmt.Sprintf("% x", sum[:]), " "))
		prints[i] = strings.ReplaceAll(prints[i], " ", ":")
		err = errors.Join(
			os.WriteFile(file(e.name+".crt"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate}), 0o600),
			os.WriteFile(file(e.name+".key"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}), 0o600),
		)
		if err != nil {
			return err
		}
	}
	for i, e := range b.ends() {
		args := []string{
			filepath.Join(b.o.bin, "openvpn"), "--dev", "ovpn" + e.name, "--dev-type", "tun", "--disable-dco", "--tun-mtu", tunnelMTU,
			"--ifconfig", e.inner.Addr().String(), e.there.Addr().String(), "--proto", "udp4", "--port", "1194",
			"--remote", e.remote.String(), "--cert", file(e.name + ".crt"), "--key", file(e.name + ".key"),
			"--peer-fingerprint", prints[1-i], "--data-ciphers", "AES-256-GCM", "--auth", "SHA256", "--verb", "1", "--txqueuelen", "1000",
		}
		if i == 0 {
			args = append(args, "--tls-server", "--dh", "none")
		} else {
			args = append(args, "--tls-client")
		}
		if err := b.start(e.n, nil, args...); err != nil {
			return err
		}
	}
	return nil
}

// selfSigned returns a certificate and its key, in DER.
func selfSigned(name string) (certificate, key []byte, err error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
	}
	if certificate, err = x509.CreateCertificate(rand.Reader, template, template, private.Public(), private); err != nil {
		return nil, nil, err
	}
	key, err = x509.MarshalPKCS8PrivateKey(private)
	return certificate, key, err
}
