package session

import (
	"context"
	"net/netip"

	"omegatun/dht/key"
	"omegatun/punch/portmap"
)

// portMapper keeps the server socket's port mapped at the gateway: a [portmap.Mapper], or a fake in tests.
type portMapper interface {
	External() (netip.AddrPort, bool)
	Report() portmap.Report
	Changes() <-chan struct{}
	Refresh()
	Close(ctx context.Context) error
}

// startMapping asks the gateway for a port, from now on until stopMapping.
func (h *Host) startMapping() {
	seed := h.cfg.Identity.Seed()
	secret := key.KeyedHash(seed[:], []byte("omegatun port mapping 1"))
	cfg := portmap.Config{
		Off:     h.cfg.NoPortMapping || h.cfg.Gateway == nil,
		Gateway: h.cfg.Gateway,
		Port:    h.server.LocalAddr().Port(),
		Secret:  secret[:],
		Logger:  h.log,
	}
	if h.cfg.newMapper != nil {
		h.mapper = h.cfg.newMapper(cfg)
	} else {
		h.mapper = portmap.New(cfg)
	}
	if !cfg.Off {
		h.wg.Go(h.watchMapping)
	}
}

// watchMapping tells the peers when the mapping changes; those who could not be reached may be reached by it. It ends with the
// Host.
func (h *Host) watchMapping() {
	var told netip.AddrPort
	for {
		changes := h.mapper.Changes()
		if external, _ := h.mapper.External(); external != told {
			told = external
			h.announceChanges()
			h.hurryPeers()
		}
		select {
		case <-changes:
		case <-h.ctx.Done():
			return
		}
	}
}

// Mapped returns the public address and port that the gateway forwards to the server socket; false while there is none.
func (h *Host) Mapped() (netip.AddrPort, bool) {
	external, ok := h.mapper.External()
	return external, ok && !h.avoid(external.Addr())
}

// PortMapping returns what the gateway answered when it was asked to forward a port to this Host, and the mapping if
// there is one. Config.NoPortMapping, or no Config.Gateway, leaves the report empty. The caller owns it.
func (h *Host) PortMapping() portmap.Report { return h.mapper.Report() }
