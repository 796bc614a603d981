"""What HLIP serves over HTTP: STOW-RS in, health, the page. One application on one port; see `plugin.web.app`."""
