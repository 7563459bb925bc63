"""The API page, its examples and Postman's collection, made from the OpenAPI document."""
