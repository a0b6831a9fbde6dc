// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"context"
	"errors"
	"net/netip"

	"github.com/mustang-net/mustang/driver"
)

type undo = func(context.Context) error

var errSwarm = errors.New("mustang networks are local to one host: swarm scope is not supported, create the network without `--scope swarm`")

// gwAllocCheck always wants gateways: every mode answers for its gateway address, and an engine that
// skipped one would give it to a container.
func (p *Plugin) gwAllocCheck(_ context.Context, req gwAllocCheckRequest) (any, undo, error) {
	if _, err := parseNetworkOptions(req.Options, true, false); err != nil {
		return nil, nil, err
	}
	return gwAllocCheckResponse{}, nil, nil
}

func (p *Plugin) createNetwork(ctx context.Context, req createNetworkRequest) (any, undo, error) {
	c, err := p.networkConfig(req)
	if err != nil {
		return nil, nil, err
	}
	if err := p.driver.CreateNetwork(ctx, c); err != nil {
		return nil, nil, err
	}
	// The id is made for this one call, so nobody else can own the network.
	return emptyResponse{}, func(ctx context.Context) error { return p.driver.DeleteNetwork(ctx, c.ID) }, nil
}

func (p *Plugin) networkConfig(req createNetworkRequest) (driver.NetworkConfig, error) {
	if err := required("NetworkID", req.NetworkID); err != nil {
		return driver.NetworkConfig{}, err
	}
	for _, d := range append(req.IPv4Data[:len(req.IPv4Data):len(req.IPv4Data)], req.IPv6Data...) {
		if d.AddressSpace == globalSpace {
			return driver.NetworkConfig{}, errSwarm
		}
	}
	v4, err := parseSubnets("IPv4Data", req.IPv4Data, false)
	if err != nil {
		return driver.NetworkConfig{}, err
	}
	v6, err := parseSubnets("IPv6Data", req.IPv6Data, true)
	if err != nil {
		return driver.NetworkConfig{}, err
	}
	o, err := parseNetworkOptions(req.Options, len(v4) > 0, len(v6) > 0)
	if err != nil {
		return driver.NetworkConfig{}, err
	}
	if err := o.checkFamilies(len(v4) > 0, len(v6) > 0); err != nil {
		return driver.NetworkConfig{}, err
	}
	if len(o.unknown) > 0 {
		p.log.WithField("options", o.unknown).Warn("ignoring options of the engine that mustang does not know")
	}
	return driver.NetworkConfig{
		ID:       req.NetworkID,
		Options:  o.generic,
		IPv4:     v4,
		IPv6:     v6,
		Internal: o.internal,
	}, nil
}

func (p *Plugin) deleteNetwork(ctx context.Context, req networkRequest) error {
	if err := required("NetworkID", req.NetworkID); err != nil {
		return err
	}
	return p.driver.DeleteNetwork(ctx, req.NetworkID)
}

func (p *Plugin) allocateNetwork(context.Context, networkRequest) (any, undo, error) {
	return nil, nil, errSwarm
}

// freeNetwork has nothing to free, since allocateNetwork gives nothing.
func (p *Plugin) freeNetwork(context.Context, networkRequest) error { return nil }

func (p *Plugin) createEndpoint(ctx context.Context, req createEndpointRequest) (any, undo, error) {
	c, err := endpointConfig(req)
	if err != nil {
		return nil, nil, err
	}
	ep, err := p.driver.CreateEndpoint(ctx, c)
	if err != nil {
		return nil, nil, err
	}
	var chosen endpointInterface
	if c.MAC == "" {
		chosen.MacAddress = ep.MAC
	}
	if !c.IPv4.IsValid() && ep.IPv4.IsValid() {
		chosen.Address = ep.IPv4.String()
	}
	if !c.IPv6.IsValid() && ep.IPv6.IsValid() {
		chosen.AddressIPv6 = ep.IPv6.String()
	}
	var resp createEndpointResponse
	if chosen != (endpointInterface{}) {
		resp.Interface = &chosen
	}
	return resp, func(ctx context.Context) error { return p.driver.DeleteEndpoint(ctx, c.NetworkID, c.ID) }, nil
}

func endpointConfig(req createEndpointRequest) (driver.EndpointConfig, error) {
	c := driver.EndpointConfig{ID: req.EndpointID, NetworkID: req.NetworkID}
	err := required("NetworkID", req.NetworkID, "EndpointID", req.EndpointID)
	if err != nil {
		return c, err
	}
	if i := req.Interface; i != nil {
		if i.Address != "" {
			if c.IPv4, err = prefix("Interface.Address", i.Address, false); err != nil {
				return c, err
			}
		}
		if i.AddressIPv6 != "" {
			if c.IPv6, err = prefix("Interface.AddressIPv6", i.AddressIPv6, true); err != nil {
				return c, err
			}
		}
		if i.MacAddress != "" {
			if c.MAC, err = macAddress(i.MacAddress); err != nil {
				return c, err
			}
		}
	}
	if disablesIPv6(req.Options) && c.IPv4.IsValid() {
		c.IPv6 = netip.Prefix{}
	}
	c.Options, err = endpointOptions(req.Options)
	return c, err
}

// endpointInfo never fails: the engine asks while it restores containers, and all it could do about
// an error is to log it.
func (p *Plugin) endpointInfo(ctx context.Context, req endpointRequest) (any, undo, error) {
	if err := endpointIDs(req); err != nil {
		return nil, nil, err
	}
	if _, err := p.driver.Endpoint(ctx, req.NetworkID, req.EndpointID); err != nil {
		p.log.WithField("endpoint", req.EndpointID).WithError(err).Warn("the engine asks about an endpoint that mustang does not know")
	}
	return endpointInfoResponse{Value: map[string]any{}}, nil, nil
}

func (p *Plugin) deleteEndpoint(ctx context.Context, req endpointRequest) error {
	if err := endpointIDs(req); err != nil {
		return err
	}
	return p.driver.DeleteEndpoint(ctx, req.NetworkID, req.EndpointID)
}

func (p *Plugin) join(ctx context.Context, req joinRequest) (any, undo, error) {
	if err := required("NetworkID", req.NetworkID, "EndpointID", req.EndpointID, "SandboxKey", req.SandboxKey); err != nil {
		return nil, nil, err
	}
	j, err := p.driver.Join(ctx, req.NetworkID, req.EndpointID, req.SandboxKey)
	if err != nil {
		return nil, nil, err
	}
	resp := joinResponse{
		InterfaceName:         interfaceName{SrcName: j.SrcName, DstPrefix: j.DstPrefix, DstName: j.DstName},
		Gateway:               address(j.Gateway),
		GatewayIPv6:           address(j.Gateway6),
		DisableGatewayService: j.DisableGatewayService,
	}
	if resp.InterfaceName.DstPrefix == "" {
		resp.InterfaceName.DstPrefix = "eth"
	}
	for _, r := range j.Routes {
		resp.StaticRoutes = append(resp.StaticRoutes, staticRoute{Destination: r.String(), RouteType: routeConnected})
	}
	for _, h := range j.Hops {
		resp.StaticRoutes = append(resp.StaticRoutes, staticRoute{Destination: h.To.String(), RouteType: routeNextHop, NextHop: h.Via.String()})
	}
	return resp, func(ctx context.Context) error {
		return p.driver.Leave(ctx, req.NetworkID, req.EndpointID)
	}, nil
}

// leave implies revokeExternal: an engine that was restarted has forgotten who the gateway was and
// sends no Revoke.
func (p *Plugin) leave(ctx context.Context, req endpointRequest) error {
	if err := endpointIDs(req); err != nil {
		return err
	}
	return p.driver.Leave(ctx, req.NetworkID, req.EndpointID)
}

// programExternal publishes the ports of the endpoint that is its container's gateway.
func (p *Plugin) programExternal(ctx context.Context, req externalRequest) (any, undo, error) {
	if err := required("NetworkID", req.NetworkID, "EndpointID", req.EndpointID); err != nil {
		return nil, nil, err
	}
	ports, err := portMap(req.Options)
	if err != nil {
		return nil, nil, err
	}
	if len(ports) == 0 {
		return emptyResponse{}, nil, nil
	}
	if err := p.driver.Publish(ctx, req.NetworkID, req.EndpointID, ports); err != nil {
		return nil, nil, err
	}
	return emptyResponse{}, func(ctx context.Context) error {
		return p.driver.Unpublish(ctx, req.NetworkID, req.EndpointID)
	}, nil
}

// revokeExternal takes the ports back. It is no sign that the endpoint goes: the engine also sends it to a live
// one, when a newly connected network becomes the container's gateway. If the container is being stopped, Leave
// follows at once.
func (p *Plugin) revokeExternal(ctx context.Context, req endpointRequest) error {
	if err := endpointIDs(req); err != nil {
		return err
	}
	return p.driver.Unpublish(ctx, req.NetworkID, req.EndpointID)
}

func (p *Plugin) discover(context.Context, discoverRequest) (any, undo, error) {
	return emptyResponse{}, nil, nil
}

func endpointIDs(req endpointRequest) error {
	return required("NetworkID", req.NetworkID, "EndpointID", req.EndpointID)
}

func address(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}
