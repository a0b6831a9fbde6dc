// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
)

// The address spaces that the engine passes back to RequestPool; the global one is swarm's.
const (
	localSpace  = "mustang-local"
	globalSpace = "mustang-global"
)

func (p *Plugin) requestPool(_ context.Context, req requestPoolRequest) (any, undo, error) {
	if err := checkPool(req); err != nil {
		return nil, nil, err
	}
	id, subnet, err := p.pools.RequestPool(req.AddressSpace, req.Pool, req.SubPool, req.V6)
	if err != nil {
		return nil, nil, err
	}
	resp := requestPoolResponse{PoolID: id, Pool: subnet.String(), Data: map[string]string{}}
	if req.Pool != "" {
		// A pool named by the user might be one that was there before: giving it back could take it
		// from its network.
		return resp, nil, nil
	}
	return resp, func(context.Context) error { return p.pools.ReleasePool(id) }, nil
}

func checkPool(req requestPoolRequest) error {
	switch req.AddressSpace {
	case localSpace:
	case globalSpace:
		return errSwarm
	default:
		return fmt.Errorf("AddressSpace %q is not mustang's: want %s", req.AddressSpace, localSpace)
	}
	for _, key := range slices.Sorted(maps.Keys(req.Options)) {
		return fmt.Errorf("IPAM option %s=%s: mustang has no IPAM options, leave it away", key, req.Options[key])
	}
	if req.Pool == "" {
		if req.SubPool != "" {
			return fmt.Errorf("SubPool %q came without a Pool: give --subnet with --ip-range", req.SubPool)
		}
		return nil
	}
	pool, err := prefix("Pool", req.Pool, req.V6)
	if err != nil {
		return err
	}
	if req.SubPool == "" {
		return nil
	}
	sub, err := prefix("SubPool", req.SubPool, req.V6)
	if err != nil {
		return err
	}
	if sub.Bits() < pool.Bits() || !pool.Contains(sub.Addr()) {
		return fmt.Errorf("SubPool %q is not inside of Pool %q: choose an --ip-range inside of the --subnet", req.SubPool, req.Pool)
	}
	return nil
}

func (p *Plugin) releasePool(_ context.Context, req releasePoolRequest) error {
	if err := required("PoolID", req.PoolID); err != nil {
		return err
	}
	return p.pools.ReleasePool(req.PoolID)
}

func (p *Plugin) requestAddress(_ context.Context, req requestAddressRequest) (any, undo, error) {
	if err := required("PoolID", req.PoolID); err != nil {
		return nil, nil, err
	}
	var want netip.Addr
	if req.Address != "" {
		var err error
		if want, err = plainAddress(req.Address); err != nil {
			return nil, nil, err
		}
	}
	got, err := p.pools.RequestAddress(req.PoolID, want, req.Options[keyAddrType] == addrGateway, req.Options[keyOwner])
	if err != nil {
		return nil, nil, err
	}
	resp := requestAddressResponse{Address: got.String(), Data: map[string]string{}}
	if want.IsValid() {
		// As with pools: the lease might be older than this call.
		return resp, nil, nil
	}
	return resp, func(context.Context) error { return p.pools.ReleaseAddress(req.PoolID, got.Addr()) }, nil
}

func (p *Plugin) releaseAddress(_ context.Context, req releaseAddressRequest) error {
	if err := required("PoolID", req.PoolID); err != nil {
		return err
	}
	addr, err := plainAddress(req.Address)
	if err != nil {
		return err
	}
	return p.pools.ReleaseAddress(req.PoolID, addr)
}

func plainAddress(s string) (netip.Addr, error) {
	a, err := netip.ParseAddr(s)
	if err != nil || a.Zone() != "" {
		return netip.Addr{}, fmt.Errorf("Address %q: %w", s, errNoAddress)
	}
	return a.Unmap(), nil
}

var errNoAddress = errors.New("want an IPv4 or IPv6 address without length")
