package daemon

import (
	"context"
	"errors"
	"fmt"
	"time"

	"omegatun/cmd/omegatun/internal/exit"
	"omegatun/session"
	"omegatun/session/udp"
)

// bootstrapTime is how long the first DHT node may take to answer before OpenHost gives up.
const bootstrapTime = 8 * time.Second

// OpenHost opens a session host and enters the DHT. Errors are [exit.Error]s that say what to do, or ctx's cause.
func OpenHost(ctx context.Context, cfg session.Config) (*session.Host, error) {
	h, err := session.New(cfg)
	if e, ok := errors.AsType[*udp.InUseError](err); ok {
		return nil, exit.New(exit.Usage, "UDP port %d is in use by another program: %w", e.Addr.Port(), err).
			WithTry("another port; or none, then a free one is found")
	}
	if err != nil {
		return nil, exit.New(exit.Other, "cannot open a UDP socket: %w", err)
	}
	ready, cancel := context.WithTimeout(ctx, bootstrapTime)
	defer cancel()
	if err := h.Ready(ready); err != nil && ctx.Err() != nil {
		return nil, errors.Join(context.Cause(ctx), h.Close())
	}
	alone := cfg.DHT.Bootstrap != nil && len(cfg.DHT.Bootstrap) == 0
	if h.Node().Info().Nodes > 0 || alone {
		return h, nil
	}
	asked := "the public network"
	if cfg.DHT.Bootstrap != nil {
		asked = fmt.Sprint(cfg.DHT.Bootstrap)
	}
	err = exit.New(exit.Timeout, "no node of the DHT answers (asked: %s)", asked).
		WithTry("check that this machine is online and may send UDP; a network of your own: --bootstrap host:port")
	return nil, errors.Join(err, h.Close())
}
