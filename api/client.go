// SPDX-License-Identifier: Apache-2.0

package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"

	"golang.org/x/sys/unix"

	"github.com/mustang-net/mustang/driver/cni"
	"github.com/mustang-net/mustang/service"
)

// Dial returns the Host behind the socket at path. The error is [ErrNoDaemon] if nobody listens there.
func Dial(path string) (Host, error) {
	conn, err := net.DialTimeout("unix", path, probeTimeout)
	switch {
	case errors.Is(err, unix.ECONNREFUSED), errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("connect to %s: %w", path, ErrNoDaemon)
	case err != nil:
		return nil, fmt.Errorf("connect to the mustang daemon: %w", err)
	}
	_ = conn.Close()
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", path)
	}
	// Without keep-alive nothing has to be closed when the Host is no longer needed.
	return &client{http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}}, nil
}

type client struct{ http http.Client }

// call sends body, if any, and decodes the answer into result, if any.
func (c *client) call(ctx context.Context, method, path string, body, result any) error {
	var content io.Reader
	if body != nil {
		text, err := json.Marshal(body)
		if err != nil {
			return fmt.Errorf("write the request: %w", err)
		}
		content = bytes.NewReader(text)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://mustang"+path, content)
	if err != nil {
		return fmt.Errorf("write the request: %w", err)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		var at *url.Error // its address is a made-up one that says nothing
		if errors.As(err, &at) {
			err = at.Err
		}
		return ended(fmt.Errorf("ask the mustang daemon: %w", err))
	}
	defer resp.Body.Close()
	if resp.StatusCode >= http.StatusBadRequest {
		return refusal(resp)
	}
	if result == nil {
		return nil
	}
	if err := json.NewDecoder(resp.Body).Decode(result); err != nil {
		return ended(fmt.Errorf("read the mustang daemon's answer: %w", err))
	}
	return nil
}

// unanswered is of a call under which the daemon has ended. Nobody knows what it has done of it.
type unanswered struct{ error }

func (unanswered) Unanswered()     {}
func (e unanswered) Unwrap() error { return e.error }

// ended marks what a client sees of a daemon that has ended.
func ended(err error) error {
	for _, sign := range []error{unix.ECONNREFUSED, unix.ENOENT, unix.ECONNRESET, unix.EPIPE, io.EOF, io.ErrUnexpectedEOF} {
		if errors.Is(err, sign) {
			return unanswered{err}
		}
	}
	return err
}

func refusal(resp *http.Response) error {
	var body errorBody
	if err := json.NewDecoder(resp.Body).Decode(&body); err != nil || body.Error == "" {
		body.Error = "the mustang daemon answered " + resp.Status
	}
	return classed(&Error{Status: resp.StatusCode, Message: body.Error})
}

func withRef(path, ref string) string { return path + "?ref=" + url.QueryEscape(ref) }

func (c *client) Services(ctx context.Context) ([]service.View, error) {
	var list []Service
	if err := c.call(ctx, http.MethodGet, "/v1/services", nil, &list); err != nil {
		return nil, err
	}
	views := make([]service.View, 0, len(list))
	for _, s := range list {
		v, err := s.View()
		if err != nil {
			return nil, fmt.Errorf("read the mustang daemon's answer: %w", err)
		}
		views = append(views, v)
	}
	return views, nil
}

func (c *client) AddService(ctx context.Context, spec service.Spec) (service.View, error) {
	var s Service
	if err := c.call(ctx, http.MethodPost, "/v1/services", SpecOf(spec), &s); err != nil {
		return service.View{}, err
	}
	v, err := s.View()
	if err != nil {
		return service.View{}, fmt.Errorf("read the mustang daemon's answer: %w", err)
	}
	return v, nil
}

func (c *client) RemoveService(ctx context.Context, ref string) error {
	return c.call(ctx, http.MethodDelete, withRef("/v1/services", ref), nil, nil)
}

func (c *client) ApplyServices(ctx context.Context, specs []service.Spec) (Applied, error) {
	list := make([]Service, 0, len(specs))
	for _, spec := range specs {
		list = append(list, SpecOf(spec))
	}
	var done Applied
	err := c.call(ctx, http.MethodPut, "/v1/services", list, &done)
	return done, err
}

func (c *client) Drain(ctx context.Context, ref string, undo bool) error {
	return c.call(ctx, http.MethodPost, "/v1/drain", drainRequest{Ref: ref, Undo: undo}, nil)
}

func (c *client) Endpoints(ctx context.Context) ([]Endpoint, error) {
	var list []Endpoint
	err := c.call(ctx, http.MethodGet, "/v1/endpoints", nil, &list)
	return list, err
}

func (c *client) AddEndpoint(ctx context.Context, ifname, netns string) (Endpoint, error) {
	var e Endpoint
	err := c.call(ctx, http.MethodPost, "/v1/endpoints", endpointRequest{IfName: ifname, Netns: netns}, &e)
	return e, err
}

func (c *client) RemoveEndpoint(ctx context.Context, ref string) error {
	return c.call(ctx, http.MethodDelete, withRef("/v1/endpoints", ref), nil, nil)
}

func (c *client) Networks(ctx context.Context) ([]Network, error) {
	var list []Network
	err := c.call(ctx, http.MethodGet, "/v1/networks", nil, &list)
	return list, err
}

func (c *client) CNI() cni.Host { return cniClient{c} }

func (c *client) Ports(ctx context.Context) ([]Port, error) {
	var list []Port
	err := c.call(ctx, http.MethodGet, "/v1/ports", nil, &list)
	return list, err
}

func (c *client) Status(ctx context.Context) (Status, error) {
	var s Status
	err := c.call(ctx, http.MethodGet, "/v1/status", nil, &s)
	return s, err
}

func (c *client) Verify(ctx context.Context, repair bool) (Verification, error) {
	method := http.MethodGet
	if repair {
		method = http.MethodPost
	}
	var v Verification
	err := c.call(ctx, method, "/v1/verify", nil, &v)
	return v, err
}
