package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"time"

	"golang.org/x/net/netutil"

	"omegatun/cmd/omegatun/internal/control"
	"omegatun/cmd/omegatun/internal/exit"
	"omegatun/session"
)

// nodeMetrics is how a node is doing, and what it has done since it started.
type nodeMetrics struct {
	Schema int        `json:"schema"`
	Event  string     `json:"event"` // "metrics"
	Host   netip.Addr `json:"host"`
	Port   uint16     `json:"port"`
	ID     string     `json:"id"` // hex

	Persistent bool   `json:"persistent"`
	Online     bool   `json:"online"`
	Degraded   bool   `json:"degraded"`
	NAT        string `json:"nat"`
	Nodes      int    `json:"nodes"`
	Records    int    `json:"records"`
	InFlight   int    `json:"in_flight"`

	Answered      uint64 `json:"answered"`
	Lost          uint64 `json:"lost"`
	Requests      uint64 `json:"requests"`
	Limited       uint64 `json:"limited"`
	Forwarded     uint64 `json:"forwarded"`
	Received      uint64 `json:"received"`
	ReceivedBytes uint64 `json:"received_bytes"`
	Sent          uint64 `json:"sent"`
	SentBytes     uint64 `json:"sent_bytes"`
}

func metricsOf(h *session.Node) nodeMetrics {
	addr, i, s := nodeAddr(h.Node(), h.Addr()), h.Node().Info(), h.Node().Stats()
	return nodeMetrics{
		Schema: control.Schema, Event: "metrics", Host: addr.Addr(), Port: addr.Port(), ID: i.ID.String(),
		Persistent: i.Persistent, Online: i.Online, Degraded: i.Degraded, NAT: i.NAT.String(),
		Nodes: i.Nodes, Records: i.Records, InFlight: i.Requests,
		Answered: s.Answered, Lost: s.Lost, Requests: s.Requests, Limited: s.Limited, Forwarded: s.Forwarded,
		Received: s.Received, ReceivedBytes: s.ReceivedBytes, Sent: s.Sent, SentBytes: s.SentBytes,
	}
}

// metric is a number of a node, as monitoring systems read it.
type metric struct {
	name, kind, help string
	value            func(*nodeMetrics) uint64
}

func oneIf(b bool) uint64 {
	if b {
		return 1
	}
	return 0
}

// metrics lists all numbers. The names of counters end in _total.
func metrics() []metric {
	const gauge, counter = "gauge", "counter"
	return []metric{
		{"persistent", gauge, "1 if the node is a member of the network.", func(m *nodeMetrics) uint64 { return oneIf(m.Persistent) }},
		{"online", gauge, "1 unless all of the latest requests were lost.", func(m *nodeMetrics) uint64 { return oneIf(m.Online) }},
		{"degraded", gauge, "1 if more than half of the latest requests were lost.", func(m *nodeMetrics) uint64 { return oneIf(m.Degraded) }},
		{"table_nodes", gauge, "Nodes in the routing table.", func(m *nodeMetrics) uint64 { return uint64(m.Nodes) }},
		{"records", gauge, "Peers, announcements and values stored for others.", func(m *nodeMetrics) uint64 { return uint64(m.Records) }},
		{"in_flight", gauge, "Own requests that wait for an answer.", func(m *nodeMetrics) uint64 { return uint64(m.InFlight) }},
		{"answered_total", counter, "Own requests that were answered.", func(m *nodeMetrics) uint64 { return m.Answered }},
		{"lost_total", counter, "Own requests that were not answered.", func(m *nodeMetrics) uint64 { return m.Lost }},
		{"requests_total", counter, "Requests of others.", func(m *nodeMetrics) uint64 { return m.Requests }},
		{"limited_total", counter, "Requests dropped because their host asks too much.", func(m *nodeMetrics) uint64 { return m.Limited }},
		{"forwarded_total", counter, "Messages between peers, passed on.", func(m *nodeMetrics) uint64 { return m.Forwarded }},
		{"received_datagrams_total", counter, "Datagrams of the protocol received.", func(m *nodeMetrics) uint64 { return m.Received }},
		{"received_bytes_total", counter, "Bytes in them.", func(m *nodeMetrics) uint64 { return m.ReceivedBytes }},
		{"sent_datagrams_total", counter, "Datagrams sent.", func(m *nodeMetrics) uint64 { return m.Sent }},
		{"sent_bytes_total", counter, "Bytes in them.", func(m *nodeMetrics) uint64 { return m.SentBytes }},
	}
}

// exposition returns the numbers of all nodes in Prometheus' text format, version 0.0.4.
func exposition(nodes []nodeMetrics) []byte {
	var b bytes.Buffer
	for _, m := range metrics() {
		name := "omegatun_dht_" + m.name
		fmt.Fprintf(&b, "# HELP %s %s\n# TYPE %s %s\n", name, m.help, name, m.kind)
		for i := range nodes {
			n := &nodes[i]
			fmt.Fprintf(&b, "%s{node=%q} %d\n", name, netip.AddrPortFrom(n.Host, n.Port), m.value(n))
		}
	}
	return b.Bytes()
}

const (
	metricsPatience = 10 * time.Second // for a request, and for its answer to be taken
	metricsAtOnce   = 8                // connections
)

// listenMetrics binds the address that --metrics names, which must be one of this machine alone.
func listenMetrics(ctx context.Context, addr string) (net.Listener, error) {
	host, port, err := net.SplitHostPort(addr)
	if err == nil && host == "localhost" {
		host = "127.0.0.1"
	}
	ip, parseErr := netip.ParseAddr(host)
	if err != nil || parseErr != nil || !ip.IsLoopback() {
		return nil, exit.New(exit.Usage, "--metrics: %q is not a loopback address with a port", addr).
			WithTry("--metrics 127.0.0.1:9737; from elsewhere, through a tunnel or a reverse proxy")
	}
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", net.JoinHostPort(host, port))
	if err != nil {
		return nil, exit.New(exit.Other, "--metrics: %w", err).WithTry("another port")
	}
	return netutil.LimitListener(l, metricsAtOnce), nil
}

// serveMetrics answers requests for the numbers of all nodes until ctx ends.
func (r *nodeRunner) serveMetrics(ctx context.Context, l net.Listener) {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, req *http.Request) {
		// A name that somebody points here, so that a web page may read the answer, is none of ours.
		host := req.Host
		if h, _, err := net.SplitHostPort(host); err == nil {
			host = h
		}
		if _, err := netip.ParseAddr(strings.Trim(host, "[]")); err != nil && host != "localhost" {
			http.Error(w, "ask by address", http.StatusMisdirectedRequest)
			return
		}
		w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
		w.Write(exposition(r.metrics())) //nolint:errcheck // whoever asked has gone
	})
	s := &http.Server{
		Handler: mux, ReadTimeout: metricsPatience, WriteTimeout: metricsPatience, IdleTimeout: metricsPatience,
		MaxHeaderBytes: 8 << 10,
	}
	defer context.AfterFunc(ctx, func() { _ = s.Close() })()
	if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		r.env.log().Warn("no more metrics are served", "error", err)
	}
}

// metrics returns the numbers of all nodes, in the order in which they were started.
func (r *nodeRunner) metrics() []nodeMetrics {
	r.mu.Lock()
	nodes := r.nodes
	r.mu.Unlock()
	list := make([]nodeMetrics, len(nodes))
	for i, h := range nodes {
		list[i] = metricsOf(h)
	}
	return list
}

// printMetrics prints the numbers of all nodes, a line each, at each signal until ctx ends.
func (r *nodeRunner) printMetrics(ctx context.Context, signals <-chan os.Signal) {
	for {
		select {
		case <-signals:
		case <-ctx.Done():
			return
		}
		for _, m := range r.metrics() {
			text := fmt.Appendf(nil, "metrics %v", netip.AddrPortFrom(m.Host, m.Port))
			for _, def := range metrics() {
				text = fmt.Appendf(text, " %s=%d", def.name, def.value(&m))
			}
			r.print(m, string(text)+"\n")
		}
	}
}
