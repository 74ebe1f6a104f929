// The API reference, by Swagger UI from the document that the server writes.

SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#docs",
  validatorUrl: null, // none: it would show the document to another host
});
