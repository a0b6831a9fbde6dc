// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"net/http"

	"github.com/mustang-net/mustang/driver/cni"
)

// cniClient asks the daemon.
type cniClient struct{ *client }

// collectRequest is the body of POST /v1/cni/gc.
type collectRequest struct {
	Network string         `json:"network"`
	Valid   []cni.Attachee `json:"valid"`
}

func (c cniClient) CreateNetwork(ctx context.Context, n cni.Network) (made cni.Network, err error) {
	err = c.call(ctx, http.MethodPost, "/v1/networks", n, &made)
	return made, err
}

func (c cniClient) RemoveNetwork(ctx context.Context, name string) error {
	return c.call(ctx, http.MethodDelete, withRef("/v1/networks", name), nil, nil)
}

func (c cniClient) Add(ctx context.Context, a cni.Attachment) (done cni.Attached, err error) {
	err = c.call(ctx, http.MethodPost, "/v1/cni/add", a, &done)
	return done, err
}

func (c cniClient) Delete(ctx context.Context, d cni.Detachment) (done cni.Detached, err error) {
	err = c.call(ctx, http.MethodPost, "/v1/cni/del", d, &done)
	return done, err
}

func (c cniClient) Check(ctx context.Context, a cni.Attachment) error {
	return c.call(ctx, http.MethodPost, "/v1/cni/check", a, nil)
}

func (c cniClient) Collect(ctx context.Context, network string, valid []cni.Attachee) (done cni.Collected, err error) {
	err = c.call(ctx, http.MethodPost, "/v1/cni/gc", collectRequest{network, valid}, &done)
	return done, err
}

func (c cniClient) CanAdd(ctx context.Context, n cni.Network) error {
	return c.call(ctx, http.MethodPost, "/v1/cni/status", n, nil)
}

// cniRoutes are the paths that cniClient asks for, and what answers them.
func cniRoutes(h Host) map[string]func(*http.Request) (any, error) {
	return map[string]func(*http.Request) (any, error){
		"POST /v1/networks": on(h, cni.Host.CreateNetwork),
		"DELETE /v1/networks": func(r *http.Request) (any, error) {
			ref, err := reference(r)
			if err != nil {
				return nil, err
			}
			return struct{}{}, h.CNI().RemoveNetwork(r.Context(), ref)
		},
		"POST /v1/cni/add":    on(h, cni.Host.Add),
		"POST /v1/cni/del":    on(h, cni.Host.Delete),
		"POST /v1/cni/check":  on(h, silent(cni.Host.Check)),
		"POST /v1/cni/status": on(h, silent(cni.Host.CanAdd)),
		"POST /v1/cni/gc": on(h, func(host cni.Host, ctx context.Context, r collectRequest) (cni.Collected, error) {
			return host.Collect(ctx, r.Network, r.Valid)
		}),
	}
}

// on answers with what a method returns for the request's body.
func on[In, Out any](h Host, do func(cni.Host, context.Context, In) (Out, error)) func(*http.Request) (any, error) {
	return func(r *http.Request) (any, error) {
		var body In
		if err := read(r, &body); err != nil {
			return nil, err
		}
		return do(h.CNI(), r.Context(), body)
	}
}

// silent is a method that has nothing to tell but its error.
func silent[In any](do func(cni.Host, context.Context, In) error) func(cni.Host, context.Context, In) (struct{}, error) {
	return func(host cni.Host, ctx context.Context, in In) (struct{}, error) {
		return struct{}{}, do(host, ctx, in)
	}
}
