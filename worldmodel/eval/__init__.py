"""How good is the agent, and how much of its dream is true? Imports the library, never `worldmodel.train`."""
